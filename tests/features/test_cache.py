"""The item cache: against a model, in time, at its limits, and under threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flame.features.cache import ItemCache
from flame.features.kernels.codes import ABSENT, BACKING_OFF, EXPIRED, FOUND, PENDING, ROW, UNANSWERED, UNKNOWN

WORDS = 5
IDS = st.one_of(st.integers(0, 30), st.sampled_from([-(2**63), 2**63 - 1, -1]))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ids_of(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def rows_of(ids: NDArray[np.int64], version: int = 0) -> NDArray[np.int32]:
    return (ids[:, None] * 1000 + version * 10 + np.arange(WORDS)).astype(np.int32)


def put(cache: ItemCache, ids: NDArray[np.int64], version: int = 0, answer: int = FOUND) -> None:
    cache.insert(ids, rows_of(ids, version), np.full(len(ids), answer, np.uint8))


def get(cache: ItemCache, ids: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.uint8], int]:
    """Rows `[n, WORDS]` read through a stride that is not the row's own, their status, and how many were not fresh."""
    stride = WORDS + 3
    words = np.full(len(ids) * stride + 2, -7, np.int32)
    status = np.full(len(ids), 255, np.uint8)
    unsettled = cache.lookup(ids, words, np.arange(len(ids), dtype=np.int64) * stride + 2, status)
    records = words[2:].reshape(len(ids), stride)
    assert (records[:, WORDS:] == -7).all(), "the look-up wrote beyond a row"
    return records[:, :WORDS], status, unsettled


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 24),
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "absent", "wait", "claim", "get"]), st.lists(IDS, min_size=1, max_size=40)),
        max_size=25,
    ),
)
def test_the_cache_never_says_what_a_dictionary_would_not(capacity: int, steps: list[tuple[str, list[int]]]) -> None:
    clock = Clock()
    cache = ItemCache(capacity, WORDS, 10.0, clock)
    model: dict[int, tuple[int | None, float]] = {}
    for version, (step, listed) in enumerate(steps):
        ids = ids_of(*listed)
        if step == "wait":
            clock.now += 4.0
        elif step == "claim":
            cache.claim(np.unique(ids), 1.0)
        elif step in ("put", "absent"):
            put(cache, ids, version, FOUND if step == "put" else ABSENT)
            model.update(dict.fromkeys(listed, (version if step == "put" else None, clock.now)))
        rows, status, unsettled = get(cache, ids)
        assert unsettled == sum(not bits & (ROW | UNKNOWN) or bool(bits & EXPIRED) for bits in status)
        for key, row, bits in zip(listed, rows, status, strict=True):
            if bits & (ROW | UNKNOWN):
                known, since = model[key]
                assert bool(bits & ROW) == (known is not None)
                assert bool(bits & EXPIRED) == (clock.now - since >= 10.0)
            if bits & ROW:
                assert (row == rows_of(ids_of(key), model[key][0] or 0)[0]).all()


def test_it_holds_what_it_says_it_can_hold() -> None:
    cache = ItemCache(20_000, WORDS, 60.0)
    ids = np.random.default_rng(1).permutation(20_000).astype(np.int64) * 1_000_003
    put(cache, ids)
    _, status, unsettled = get(cache, ids)
    assert unsettled < 20, "two-choice placement must overflow hardly any set"
    assert ((status == ROW) | (status == 0)).all()


def test_what_is_read_often_outlives_what_is_read_once() -> None:
    cache = ItemCache(800, WORDS, 60.0)
    hot = np.arange(100, dtype=np.int64)
    put(cache, hot)
    for wave in range(50):
        get(cache, hot)
        put(cache, np.arange(200, dtype=np.int64) + 1000 + 200 * wave)
    assert get(cache, hot)[2] < 10


def test_a_row_expires_after_its_time_to_live_and_not_before() -> None:
    clock = Clock()
    cache = ItemCache(100, WORDS, 2.0, clock)
    put(cache, ids_of(5))
    clock.now += 1.99
    assert get(cache, ids_of(5))[1][0] == ROW
    clock.now += 0.02
    rows, status, unsettled = get(cache, ids_of(5))
    assert status[0] == ROW | EXPIRED
    assert unsettled == 1
    assert (rows == rows_of(ids_of(5))).all()
    put(cache, ids_of(5), version=1)
    rows, status, _ = get(cache, ids_of(5))
    assert status[0] == ROW
    assert (rows == rows_of(ids_of(5), 1)).all()


def test_a_row_unread_for_years_is_still_expired() -> None:
    clock = Clock()
    cache = ItemCache(100, WORDS, 300.0, clock)
    put(cache, ids_of(5))
    for years in (1, 3, 6, 12):
        clock.now = 1000.0 + years * 365 * 86400.0
        assert get(cache, ids_of(5))[1][0] == ROW | EXPIRED


@pytest.mark.parametrize(("ttl", "waits", "fresh"), [(1e-6, 0.0, False), (0.01, 0.008, True), (0.01, 0.011, False)])
def test_short_times_to_live_are_kept_to_a_millisecond(ttl: float, waits: float, fresh: bool) -> None:
    clock = Clock()
    cache = ItemCache(100, WORDS, ttl, clock)
    put(cache, ids_of(5))
    clock.now += waits
    assert get(cache, ids_of(5))[1][0] == (ROW if fresh else ROW | EXPIRED)
    for seconds in (1.0, 10.0, 1000.0, 1e6):
        clock.now = 1000.0 + seconds
        assert get(cache, ids_of(5))[1][0] == ROW | EXPIRED


def test_a_writer_whose_clock_was_read_later_leaves_a_fresh_row() -> None:
    clock = Clock()
    cache = ItemCache(100, WORDS, 2.0, clock)
    clock.now += 1.0
    put(cache, ids_of(5))
    clock.now -= 1.0
    assert get(cache, ids_of(5))[1][0] == ROW


def test_an_absent_item_is_remembered_and_expires_too() -> None:
    clock = Clock()
    cache = ItemCache(100, WORDS, 2.0, clock)
    put(cache, ids_of(5), answer=ABSENT)
    assert get(cache, ids_of(5))[1][0] == UNKNOWN
    clock.now += 3.0
    assert get(cache, ids_of(5))[1][0] == UNKNOWN | EXPIRED
    put(cache, ids_of(5))
    assert get(cache, ids_of(5))[1][0] == ROW


def test_an_unanswered_id_changes_nothing() -> None:
    cache = ItemCache(100, WORDS, 2.0)
    put(cache, ids_of(5))
    put(cache, ids_of(5, 6), version=9, answer=UNANSWERED)
    rows, status, _ = get(cache, ids_of(5, 6))
    assert status.tolist() == [ROW, 0]
    assert (rows[0] == rows_of(ids_of(5))[0]).all()


def test_only_one_claim_on_an_id_holds_until_its_lease_ends() -> None:
    clock = Clock()
    cache = ItemCache(100, WORDS, 10.0, clock)
    put(cache, ids_of(1))
    assert cache.claim(ids_of(1, 2, 3), 5.0).tolist() == [False, True, True]
    assert cache.claim(ids_of(1, 2, 3), 5.0).tolist() == [False, False, False]
    assert get(cache, ids_of(1, 2, 3))[1].tolist() == [ROW, PENDING, PENDING]
    clock.now += 5.1
    assert get(cache, ids_of(2))[1].tolist() == [0]
    assert cache.claim(ids_of(2), 5.0).tolist() == [True]
    cache.give_back(ids_of(2))
    assert cache.claim(ids_of(2), 5.0).tolist() == [True]
    put(cache, ids_of(2))
    assert get(cache, ids_of(2))[1].tolist() == [ROW]


def test_a_failed_fetch_keeps_an_id_from_being_claimed_for_a_while() -> None:
    clock = Clock()
    cache = ItemCache(100, WORDS, 1.0, clock)
    put(cache, ids_of(1))
    clock.now += 2.0
    assert cache.claim(ids_of(1), 5.0).tolist() == [True]
    cache.back_off(ids_of(1), 3.0)
    assert get(cache, ids_of(1))[1].tolist() == [ROW | EXPIRED | BACKING_OFF]
    assert cache.claim(ids_of(1), 5.0).tolist() == [False]
    clock.now += 3.1
    assert cache.claim(ids_of(1), 5.0).tolist() == [True]


def test_a_claim_under_threads_is_given_to_exactly_one() -> None:
    cache = ItemCache(1000, WORDS, 10.0)
    ids = np.arange(600, dtype=np.int64)
    barrier = threading.Barrier(8)
    won = np.zeros((8, len(ids)), np.int64)

    def run(worker: int) -> None:
        order = np.random.default_rng(worker).permutation(len(ids))
        barrier.wait()
        won[worker, order] = cache.claim(ids[order], 60.0)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (won.sum(0) == 1).all()


@pytest.mark.parametrize("words", [1, 16, 96])
def test_a_reader_never_sees_a_torn_row(words: int) -> None:
    """Writers fill the rows of few, crowded sets with one number each; a mixed row would show two."""
    cache = ItemCache(24, words, 60.0)
    ids = np.arange(40, dtype=np.int64)
    stop = threading.Event()
    torn: list[str] = []
    read = [0, 0]

    def write(worker: int) -> None:
        random = np.random.default_rng(worker)
        while not stop.is_set():
            chosen = random.permutation(ids)
            value = chosen * 100_000 + random.integers(100_000)
            cache.insert(chosen, np.repeat(value.astype(np.int32)[:, None], words, 1), np.full(40, FOUND, np.uint8))

    def look(worker: int) -> None:
        out, status = np.zeros(40 * words, np.int32), np.zeros(40, np.uint8)
        offsets = np.arange(40, dtype=np.int64) * words
        while not stop.is_set():
            cache.lookup(ids, out, offsets, status)
            held = status & ROW > 0
            rows = out.reshape(40, words)[held]
            read[worker] += len(rows)
            if (rows != rows[:, :1]).any() or (rows[:, 0] // 100_000 != ids[held]).any():
                torn.append(str(rows[:3]))

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(2)]
    threads += [threading.Thread(target=look, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    stop.wait(1.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert not torn
    assert min(read) > 100
