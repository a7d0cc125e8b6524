"""How item rows are found: fresh, stale, missing, unknown; alone and under threads; with a slow and a failing store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flame.features.cache import ItemCache
from flame.features.fetch import CachedFetcher, FailureLog, Fetcher
from flame.features.kernels.codes import EXPIRED, ROW, UNKNOWN
from flame.features.modes import AsyncRows, DirectRows, RowSource, SyncRows
from flame.features.refresh import Refresher
from flame.features.rows import pack_rows
from flame.metrics import Metrics
from flame.schema import InputSchema

LEASE_S = 30.0
TTL_S = 100.0
MISSING, FRESH, STALE, ABSENT = "missing", "fresh", "stale", "unknown"


class Clock:
    """Real time plus what a test adds."""

    def __init__(self) -> None:
        self.extra = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.extra


class Bench:
    """Row sources of every mode over one store and one cache."""

    def __init__(self, store: Any, schema: InputSchema, columns_of: Any, capacity: int = 2000) -> None:
        self.store, self.schema, self.columns_of = store, schema, columns_of
        self.metrics, self.clock = Metrics(), Clock()
        self.words = schema.item_row.words
        self.cache = ItemCache(capacity, self.words, TTL_S, self.clock)
        self.fetcher = Fetcher(store, self.words, self.metrics, FailureLog(self.metrics))
        self.cached = CachedFetcher(self.fetcher, self.cache, LEASE_S)
        self.refreshers: list[Refresher] = []

    def source(self, mode: str, threads: int = 1, queue_ids: int = 10_000) -> RowSource:
        if mode == "off":
            return DirectRows(self.fetcher)
        refresher = Refresher(
            self.cached, self.cache, self.metrics, threads=threads, lease_s=LEASE_S, queue_ids=queue_ids
        )
        self.refreshers.append(refresher)
        if mode == "async":
            return AsyncRows(self.cache, refresher, LEASE_S)
        return SyncRows(self.cache, self.cached, refresher, LEASE_S)

    def fill(self, source: RowSource, ids: Any, wait_s: float = 10.0) -> list[str]:
        """The state of each id, after a check that every row there is is right (of any version up to 3)."""
        wanted = np.asarray(ids, np.int64)
        words, status = np.full(len(wanted) * self.words, -9, np.int32), np.zeros(len(wanted), np.uint8)
        source.fill(wanted, words, np.arange(len(wanted)) * self.words, status, time.monotonic() + wait_s)
        there = status & ROW > 0
        rows = words.reshape(-1, self.words)[there]
        versions = [self.rows(wanted[there], version) for version in range(4)]
        assert all(any((row == version[i]).all() for version in versions) for i, row in enumerate(rows))
        return [_state(int(bits)) for bits in status]

    def rows(self, ids: NDArray[np.int64], version: int) -> NDArray[np.int32]:
        return pack_rows(self.schema.item_row, self.columns_of(ids, version), len(ids))

    def value(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"flame_{metric}", labels or None) or 0.0


def _state(bits: int) -> str:
    if bits & UNKNOWN:
        return ABSENT
    if not bits & ROW:
        return MISSING
    return STALE if bits & EXPIRED else FRESH


@pytest.fixture
def bench(faulty: Any, schema: InputSchema, columns_of: Any) -> Iterator[Bench]:
    made = Bench(faulty, schema, columns_of)
    yield made
    faulty.gate.set()
    for refresher in made.refreshers:
        refresher.close()


@pytest.mark.parametrize("mode", ["off", "sync"])
def test_what_waits_gets_everything_at_once(bench: Bench, mode: str) -> None:
    ids = [5, 7, 5, 400, 299, -1, 7]
    source = bench.source(mode)
    states = [FRESH, FRESH, FRESH, ABSENT, FRESH, ABSENT, FRESH]
    assert bench.fill(source, ids) == states
    assert bench.store.queries == [[-1, 5, 7, 299, 400]]
    assert bench.fill(source, ids) == states
    assert len(bench.store.queries) == (2 if mode == "off" else 1), "the cache remembers rows and absence"
    assert bench.value("store_seconds_count") == len(bench.store.queries)


def test_sync_asks_again_for_what_has_expired_and_only_for_that(bench: Bench) -> None:
    source = bench.source("sync")
    bench.fill(source, [1, 2])
    bench.clock.extra = TTL_S / 2
    bench.fill(source, [3])
    bench.clock.extra = TTL_S + 1
    ids = np.array([1], np.int64)
    bench.store.inner.put_items(ids, bench.columns_of(ids, 1))
    words, status = np.zeros(bench.words, np.int32), np.zeros(1, np.uint8)
    assert bench.fill(source, [3, 2, 1]) == [FRESH] * 3
    assert bench.store.queries[2:] == [[1, 2]]
    source.fill(ids, words, np.zeros(1, np.int64), status, time.monotonic() + 1)
    np.testing.assert_array_equal(words, bench.rows(ids, 1)[0])


def test_an_item_that_vanished_from_the_store_is_unknown_and_not_stale(bench: Bench) -> None:
    source = bench.source("sync")
    source_ids = np.array([5], np.int64)
    bench.cache.insert(np.array([900], np.int64), bench.rows(np.array([900]), 0), np.ones(1, np.uint8))
    bench.fill(source, source_ids)
    bench.clock.extra = TTL_S + 1
    assert bench.fill(source, [900, 5]) == [ABSENT, FRESH]


def test_async_answers_at_once_and_has_it_the_next_time(bench: Bench, eventually: Callable[..., None]) -> None:
    source = bench.source("async")
    bench.store.gate.clear()
    assert bench.fill(source, [5, 400, 5]) == [MISSING] * 3
    bench.store.gate.set()
    eventually(lambda: bench.fill(source, [5, 400, 5]) == [FRESH, ABSENT, FRESH])
    bench.clock.extra = TTL_S + 1
    bench.store.gate.clear()
    assert bench.fill(source, [5, 400]) == [STALE, ABSENT]
    bench.store.gate.set()
    eventually(lambda: bench.fill(source, [5, 400]) == [FRESH, ABSENT])
    assert bench.store.asked() == {5: 2, 400: 2}


def test_async_refreshes_a_hot_id_once_however_many_ask(bench: Bench, eventually: Callable[..., None]) -> None:
    source = bench.source("async", threads=3)
    bench.store.gate.clear()
    ids = list(range(1, 60))
    _together(16, lambda: [bench.fill(source, ids) for _ in range(5)])
    bench.store.gate.set()
    eventually(lambda: bench.fill(source, ids) == [FRESH] * 59)
    assert bench.store.asked() == dict.fromkeys(ids, 1)


def test_sync_fetches_an_id_once_however_many_wait(bench: Bench) -> None:
    source = bench.source("sync")
    bench.store.delay_s = 0.05
    ids = list(range(1, 60))
    states: list[list[str]] = []

    def run() -> None:
        order = np.random.default_rng(threading.get_ident() % 2**32).permutation(ids)
        states.append(bench.fill(source, order))

    _together(16, run)
    assert states == [[FRESH] * 59] * 16
    assert bench.store.asked() == dict.fromkeys(ids, 1)
    bench.clock.extra = TTL_S + 1
    _together(16, run)
    assert states == [[FRESH] * 59] * 32
    assert bench.store.asked() == dict.fromkeys(ids, 2)


def test_sync_with_a_slow_store_keeps_the_deadline_and_the_rows_come_later(
    bench: Bench, eventually: Callable[..., None]
) -> None:
    source = bench.source("sync")
    bench.fill(source, [1, 2])
    bench.clock.extra = TTL_S + 1
    bench.store.gate.clear()
    began = time.monotonic()
    assert bench.fill(source, [1, 2, 3, 3], wait_s=0.05) == [STALE, STALE, MISSING, MISSING]
    assert time.monotonic() - began < 2.0
    bench.store.gate.set()
    eventually(lambda: bench.fill(source, [1, 2, 3, 3], wait_s=0.0) == [FRESH] * 4)


@pytest.mark.parametrize("mode", ["off", "sync"])
def test_a_deadline_that_has_passed_waits_for_nothing(bench: Bench, mode: str) -> None:
    bench.store.gate.clear()
    began = time.monotonic()
    assert bench.fill(bench.source(mode), [1, 2], wait_s=-1.0) == [MISSING] * 2
    assert time.monotonic() - began < 2.0


def test_who_waits_for_another_keeps_its_own_deadline(bench: Bench) -> None:
    source = bench.source("sync")
    bench.store.delay_s = 1.0
    first = threading.Thread(target=lambda: bench.fill(source, [1, 2, 3]))
    first.start()
    while not bench.store.queries:
        time.sleep(0.001)
    began = time.monotonic()
    assert bench.fill(source, [3], wait_s=0.02) == [MISSING]
    assert time.monotonic() - began < 0.9
    first.join()
    assert bench.fill(source, [3], wait_s=0.02) == [FRESH]


def test_a_failing_store_is_counted_not_hammered_and_comes_back(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    source = bench.source("sync")
    bench.fill(source, [4])
    bench.clock.extra = TTL_S + 1
    bench.store.failing = True
    assert bench.fill(source, [1, 2, 3, 4]) == [FRESH, FRESH, MISSING, STALE], "answers before the failure hold"
    for _ in range(5):
        assert bench.fill(source, [3, 4, 1]) == [MISSING, STALE, FRESH]
    assert len(bench.store.queries) == 2, "nobody asks again before the back-off ends"
    assert bench.value("store_errors_total") == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the test says so" in caplog.text
    bench.store.failing = False
    bench.clock.extra += LEASE_S + 1
    assert bench.fill(source, [3, 4, 1]) == [FRESH] * 3


def test_a_failing_store_fails_softly_in_the_background_too(bench: Bench, eventually: Callable[..., None]) -> None:
    source = bench.source("async")
    bench.store.failing = True
    assert bench.fill(source, [3, 4]) == [MISSING] * 2
    eventually(lambda: bench.value("store_errors_total") == 1)
    bench.store.failing = False
    bench.clock.extra += LEASE_S + 1
    eventually(lambda: bench.fill(source, [3, 4]) == [FRESH] * 2)


def test_without_a_cache_a_failing_store_leaves_rows_missing(bench: Bench) -> None:
    bench.store.failing = True
    assert bench.fill(bench.source("off"), [3, 4, 5]) == [FRESH, MISSING, MISSING]
    assert bench.value("store_errors_total") == 1


def test_a_bug_in_the_store_is_not_hidden_and_ends_its_claims(
    bench: Bench, caplog: pytest.LogCaptureFixture, eventually: Callable[..., None]
) -> None:
    bench.store.broken = True
    with pytest.raises(RuntimeError, match="a bug in the store"):
        bench.fill(bench.source("sync"), [1, 2])
    source = bench.source("async")
    bench.fill(source, [8])
    eventually(lambda: "refreshing 1 item rows failed" in caplog.text)
    bench.store.broken = False
    bench.clock.extra += LEASE_S + 1
    eventually(lambda: bench.fill(source, [1, 2, 8]) == [FRESH] * 3)


def test_ids_that_the_queue_cannot_take_are_counted_and_tried_again(
    bench: Bench, eventually: Callable[..., None]
) -> None:
    source = bench.source("async", queue_ids=10)
    bench.store.gate.clear()
    assert bench.fill(source, range(1, 30)) == [MISSING] * 29
    assert bench.value("refresh_dropped_total") == 29
    bench.store.gate.set()
    assert bench.fill(source, [1, 2, 3]) == [MISSING] * 3
    eventually(lambda: bench.fill(source, [1, 2, 3]) == [FRESH] * 3)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_cache_far_too_small_is_slow_and_never_wrong(
    faulty: Any, schema: InputSchema, columns_of: Any, mode: str
) -> None:
    bench = Bench(faulty, schema, columns_of, capacity=8)
    source = bench.source(mode)
    wrong: list[object] = []

    def run() -> None:
        random = np.random.default_rng(threading.get_ident() % 2**32)
        for _ in range(20):
            states = bench.fill(source, random.integers(1, 400, 100))
            if mode == "sync" and set(states) - {FRESH, ABSENT}:
                wrong.append(states)

    _together(6, run)
    for refresher in bench.refreshers:
        refresher.close()
    assert not wrong


def test_closing_leaves_no_thread_behind(bench: Bench) -> None:
    others = set(threading.enumerate())
    source = bench.source("async", threads=2)
    bench.fill(source, [1])
    source.close()
    source.close()
    assert not [one for one in set(threading.enumerate()) - others if one.name.startswith("flame-refresh")]
    assert bench.fill(source, [2]) == [MISSING]
    assert bench.value("refresh_dropped_total") == 1


def _together(count: int, run: Callable[[], object]) -> None:
    """Runs `run` on so many threads at once and raises what one of them raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def guarded() -> None:
        barrier.wait()
        try:
            run()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
