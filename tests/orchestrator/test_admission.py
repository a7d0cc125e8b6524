from __future__ import annotations

import gc
import itertools
import pickle
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.config import OrchestratorConfig
from flame.engine.spec import HstuConfig, ModelSpec, Profile, ProfileCost, Task
from flame.errors import DeadlineExceeded, ExecutionError, FlameError, QueueFull, ShuttingDown
from flame.metrics import Metrics
from flame.orchestrator.admission import Admission
from flame.orchestrator.outcome import Scored
from flame.orchestrator.permit import Permit
from flame.orchestrator.profiles import ProfileSet
from flame.records import History, Priority, RankRequest
from flame.schema import InputSchema, ItemTable

SCHEMA = InputSchema(ItemTable(100, 8), max_history=20, max_candidates=100, actions=2)
SPEC = ModelSpec("m", "1", (Task("t"),), SCHEMA, hstu=HstuConfig(8, 1, 1, 8, 8))
COST_MS = 1000.0
USERS = itertools.count(100)
"""Whoever is not named comes once."""


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def admission(
    limit: int = 3,
    executors: int = 1,
    metrics: Metrics | None = None,
    clock: Callable[[], float] = time.monotonic,
    sizes: tuple[int, ...] = (100,),
    **settings: Any,
) -> Admission:
    """A request is predicted to take one second; with several sizes, ten milliseconds for each candidate."""
    profiles = [Profile(1, 20, size) for size in sizes]
    costs = {profile: ProfileCost(*[COST_MS * profile.candidates / 100] * 3) for profile in profiles}
    config = OrchestratorConfig(max_in_flight=limit, executors=executors, **settings)
    return Admission(SCHEMA, ProfileSet(SPEC, profiles, costs), config, metrics or Metrics(), clock)


def request(
    seconds: float | None = None,
    history: int | None = None,
    *,
    user: int | None = None,
    candidates: int = 5,
    priority: Priority = "interactive",
    now: float | None = None,
) -> RankRequest:
    column = np.zeros(history or 0, np.int64)
    deadline = None if seconds is None else (time.monotonic() if now is None else now) + seconds
    events = None if history is None else History(column, column, column)
    user = next(USERS) if user is None else user
    return RankRequest(user, np.arange(candidates), history=events, deadline=deadline, priority=priority)


@contextmanager
def held(gate: Admission, asked: RankRequest) -> Iterator[Permit]:
    permit = gate.admit(asked)
    try:
        yield permit
    finally:
        permit.release()


def answer(permit: Permit, clock: Clock, *, queue_ms: float, compute_ms: float, spent_ms: float) -> None:
    """Ends a request that came now."""
    clock.now += (queue_ms + compute_ms) / 1e3
    permit.release(Scored(np.zeros((5, 1), np.float32), queue_ms * 1e3, compute_ms * 1e3, 1, False, spent_ms))


def test_one_more_than_the_limit_is_refused_until_one_leaves() -> None:
    gate = admission(limit=2)
    first, _second = gate.admit(request()), gate.admit(request())
    with pytest.raises(QueueFull, match="2 requests"):
        gate.admit(request())
    first.release()
    with held(gate, request()):
        assert gate.in_flight == 2
    assert gate.in_flight == 1


def test_releasing_twice_counts_once() -> None:
    gate = admission(limit=2)
    kept = gate.admit(request())
    with held(gate, request()) as permit:
        permit.release()
    permit.release()
    assert gate.in_flight == 1
    kept.release()
    assert gate.in_flight == 0


def test_an_outcome_is_learned_once() -> None:
    clock = Clock()
    gate, once = (admission(limit=9, clock=clock) for _ in range(2))
    scored = Scored(np.zeros((5, 1), np.float32), 0.0, 0.0, 1, spent_ms=500.0)
    for _ in range(20):
        permit, single = gate.admit(request()), once.admit(request())
        single.release(scored)
        for _ in range(3):
            permit.release(scored)
        silent = gate.admit(request())
        silent.release()
        silent.release(scored)
    assert gate.correction == once.correction == pytest.approx(0.5)
    assert gate._forecast._compared == once._forecast._compared
    assert gate.in_flight == 0


@given(st.lists(st.tuples(st.sampled_from([None, 0, 1, 9, 10, 11, 20]), st.integers(1, 100)), max_size=20))
def test_a_request_is_taken_to_cost_what_its_profiles_say(asked: list[tuple[int | None, int]]) -> None:
    sizes = [Profile(users, history, size) for users in (1, 2) for history in (10, 20) for size in (10, 100)]
    profiles = ProfileSet(SPEC, sizes, {})
    gate = Admission(SCHEMA, profiles, OrchestratorConfig(max_in_flight=99), Metrics())
    for history, candidates in asked * 2:
        events = SCHEMA.sequence_capacity(20 if history is None else history)
        with held(gate, request(history=history, candidates=candidates)) as permit:
            assert permit.place.cost_ms == profiles.predict(events, candidates)


def test_a_refusal_is_no_garbage() -> None:
    """Thousands of them in a second: none may wait for the collector, with the frames that it went through."""
    gate, left = admission(), []
    gc.disable()
    try:
        for late in (-1.0, 0.5):
            try:
                gate.admit(request(late))
            except DeadlineExceeded as error:
                left.append(weakref.ref(error))
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()


def test_a_refusal_says_what_was_when_it_was_made() -> None:
    gate = admission(limit=9)
    held = [gate.admit(request()) for _ in range(3)]
    with pytest.raises(DeadlineExceeded) as refusal:
        gate.admit(request(0.0005))
    for permit in held:
        permit.release()
    text = str(refusal.value)
    assert re.fullmatch(
        r"the deadline is in 0\.[0-5]\d ms and an answer for 5 candidates is expected in 5000\.00 ms; allow more time, "
        r"or try again when the 3 requests in flight are done",
        text,
    )
    assert str(pickle.loads(pickle.dumps(refusal.value))) == text
    with pytest.raises(DeadlineExceeded, match=r"in 1000\.00 ms; allow more time$"):
        gate.admit(request(0.9))


def test_a_refusal_leaves_nothing_behind() -> None:
    gate = admission()
    for _ in range(10):
        with pytest.raises(DeadlineExceeded):
            gate.admit(request(-1.0))
    assert gate.in_flight == 0
    gate.admit(request(COST_MS / 1e3 + 60))


@pytest.mark.parametrize("history", [None, 0, 20], ids=["in the store", "empty", "full"])
def test_a_deadline_that_has_passed_or_cannot_be_met_is_refused(history: int | None) -> None:
    with pytest.raises(DeadlineExceeded, match="passed"):
        admission().admit(request(-0.001, history))
    with pytest.raises(DeadlineExceeded, match=r"expected in 1000\.00 ms"):
        admission().admit(request(0.9, history))
    admission().admit(request(60, history))


def test_work_ahead_counts_divided_by_the_executors() -> None:
    gate = admission(limit=9)
    for _ in range(3):
        gate.admit(request())
    with pytest.raises(DeadlineExceeded, match=r"expected in 5000\.00 ms"):
        gate.admit(request(4.9))
    wide = admission(limit=9, executors=3)
    for _ in range(3):
        wide.admit(request())
    wide.admit(request(2.6))


def test_answers_correct_predictions() -> None:
    clock = Clock()
    gate = admission(limit=9, clock=clock)
    for _ in range(200):
        answer(gate.admit(request()), clock, queue_ms=0.0, compute_ms=700.0, spent_ms=500.0)
    assert gate.correction == pytest.approx(0.5)
    gate.admit(request(0.71, now=clock.now))
    with pytest.raises(DeadlineExceeded, match=r"expected in 1500\.00 ms"):  # (500 of who is ahead + 700) * 1.25
        gate.admit(request(1.4, now=clock.now))


def test_what_takes_time_beside_the_model_is_expected() -> None:
    clock = Clock()
    gate = admission(limit=9, clock=clock)
    for _ in range(300):
        permit = gate.admit(request())
        clock.now += 2.0
        answer(permit, clock, queue_ms=0.0, compute_ms=1000.0, spent_ms=1000.0)
    gate.admit(request())
    with pytest.raises(DeadlineExceeded, match=r"expected in (49\d\d|5000)\.\d\d ms"):
        gate.admit(request(4.9, now=clock.now))


def test_the_margin_is_what_answers_have_needed() -> None:
    clock = Clock()
    gate = admission(limit=9, clock=clock)
    ahead = gate.admit(request())
    for number in range(256 + 256):
        late = number % 50 == 0
        answer(gate.admit(request()), clock, queue_ms=4000.0 if late else 0.0, compute_ms=1000.0, spent_ms=1000.0)
    with pytest.raises(
        DeadlineExceeded, match=r"expected in 5000\.00 ms"
    ):  # 2 s are ahead and own, and 1 of 50 took 5 s
        gate.admit(request(4.9, now=clock.now))
    for _ in range(256 * 16):
        answer(gate.admit(request()), clock, queue_ms=1000.0, compute_ms=1000.0, spent_ms=1000.0)
    gate.admit(request(2.1, now=clock.now))
    ahead.release()


def test_misses_widen_the_margin_but_not_beyond_all_measure() -> None:
    clock = Clock()
    gate = admission(limit=9, clock=clock)
    gate.admit(request())
    for _ in range(256 + 256):
        permit = gate.admit(request())
        clock.now += 100.0
        permit.release(DeadlineExceeded("too late"))
    with pytest.raises(DeadlineExceeded, match=r"expected in 8000\.00 ms"):
        gate.admit(request(7.9, now=clock.now))


def test_other_errors_teach_nothing() -> None:
    gate = admission()
    for _ in range(1000):
        gate.admit(request()).release(ExecutionError("no"))
    assert gate.correction == 1.0
    gate.admit(request(1.01))


def test_an_idle_server_tries_again_after_a_bad_time() -> None:
    clock = Clock()
    gate = admission(limit=9, clock=clock)
    for _ in range(600):
        answer(gate.admit(request()), clock, queue_ms=0.0, compute_ms=1e6, spent_ms=1e6)
    with held(gate, request(1.1, now=clock.now)), pytest.raises(DeadlineExceeded):
        gate.admit(request(10.0, now=clock.now))
    gate.admit(request(1.1, now=clock.now))


def test_a_small_request_is_let_in_no_sooner_than_a_large_one_where_much_is_ahead() -> None:
    clock = Clock()
    gate = admission(limit=99, clock=clock, sizes=(10, 100))
    gate.admit(request(0.2, now=clock.now))
    for _ in range(10):
        gate.admit(request(candidates=100))
    with pytest.raises(DeadlineExceeded, match="expected in 13"):  # 10.1 s ahead, and 1 s of the largest, not 0.1
        gate.admit(request(13.0, candidates=10, now=clock.now))


def test_a_users_second_request_waits_for_those_who_will_come_between() -> None:
    """Users with one request each take half of the executor; they overtake whoever has had a turn already."""
    clock = Clock()
    gate = admission(limit=9, clock=clock)
    for _ in range(200):
        answer(gate.admit(request()), clock, queue_ms=1000.0, compute_ms=1000.0, spent_ms=1000.0)
    gate.admit(request(user=2))
    with pytest.raises(DeadlineExceeded, match=r"expected in 2500\.00 ms"):
        gate.admit(request(2.4, now=clock.now, user=3))
    with pytest.raises(DeadlineExceeded, match=r"expected in 59\d\d\.\d\d ms"):
        gate.admit(request(5.8, now=clock.now, user=2))


def test_the_backlog_of_one_user_is_not_ahead_of_another() -> None:
    gate = admission(limit=99)
    for _ in range(20):
        gate.admit(request(user=1))
    gate.admit(request(user=2))
    with pytest.raises(DeadlineExceeded, match=r"expected in 3750\.00 ms"):
        gate.admit(request(3.7, user=3))
    with pytest.raises(DeadlineExceeded, match=r"expected in 4[4-7]\d\d\d\.\d\d ms"):
        gate.admit(request(42.0, user=1))


def test_batch_requests_never_keep_interactive_ones_out() -> None:
    gate = admission(limit=2)
    batch = [gate.admit(request(priority="batch")) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests"):
        gate.admit(request(priority="batch"))
    gate.admit(request(1.3))
    gate.admit(request())
    with pytest.raises(QueueFull):
        gate.admit(request())
    for permit in batch:
        permit.release()
    with pytest.raises(QueueFull, match="2 requests"):
        gate.admit(request(priority="batch"))
    assert gate.in_flight == 2


def test_a_batch_request_waits_for_all_the_work_and_an_interactive_one_for_its_own_kind() -> None:
    gate = admission(limit=9)
    gate.admit(request())
    gate.admit(request(priority="batch"))
    with pytest.raises(DeadlineExceeded, match=r"expected in 38\d\d\.\d\d ms"):
        gate.admit(request(3.7, priority="batch"))
    with pytest.raises(DeadlineExceeded, match=r"expected in 2562\.50 ms"):  # the share of batch work is a twentieth
        gate.admit(request(2.5))


@pytest.mark.parametrize(("seconds", "left"), [(1.01, 100), (0.99, 50), (0.45, 20), (0.11, 10), (0.09, None)])
def test_a_request_that_comes_too_late_for_all_its_candidates_is_truncated(seconds: float, left: int | None) -> None:
    metrics = Metrics()
    gate = admission(sizes=(10, 20, 50, 100), overload="truncate", metrics=metrics)
    asked = request(seconds, candidates=100)
    if left is None:
        with pytest.raises(DeadlineExceeded, match="10 candidates is expected in 100"):
            gate.admit(asked)
    else:
        with held(gate, asked) as permit:
            assert (permit.candidates, permit.truncated) == (left, left < 100)


def test_more_candidates_than_a_profile_holds_are_truncated_to_whole_launches() -> None:
    gate = admission(sizes=(10, 30), overload="truncate")
    assert [gate.admit(request(s, candidates=100)).candidates for s in (0.95,)] == [90]
    assert list(gate._profiles.tiers[0].fewer(100)) == [90, 60, 30, 10]
    assert list(gate._profiles.tiers[0].fewer(90)) == [60, 30, 10]
    assert list(gate._profiles.tiers[0].fewer(30)) == [10]
    assert list(gate._profiles.tiers[0].fewer(10)) == []


def test_a_full_server_and_a_deadline_that_has_passed_are_refused_under_any_policy() -> None:
    gate = admission(limit=1, sizes=(10, 100), overload="truncate")
    with pytest.raises(DeadlineExceeded, match="passed"):
        gate.admit(request(-1.0, candidates=100))
    permit = gate.admit(request(0.5, candidates=100))
    assert permit.truncated
    with pytest.raises(QueueFull):
        gate.admit(request(60))


def test_refusals_are_counted_by_reason_and_priority() -> None:
    metrics = Metrics()
    gate = admission(limit=1, metrics=metrics)
    refused = [request(-1.0), request(0.5, priority="batch"), request(0.5, priority="batch")]
    with held(gate, request()):
        for one in [*refused, request(), request(priority="batch")]:
            with pytest.raises(FlameError):
                gate.admit(one)
    gate.drain(0.0)
    with pytest.raises(ShuttingDown):
        gate.admit(request())

    def count(reason: str, priority: str) -> float | None:
        labels = {"stage": "admission", "reason": reason, "priority": priority}
        return metrics.registry.get_sample_value("flame_refused_total", labels)

    assert [count("deadline_exceeded", "interactive"), count("deadline_exceeded", "batch")] == [1, 2]
    assert [count("queue_full", "interactive"), count("queue_full", "batch")] == [1, 1]
    assert [count("shutting_down", "interactive"), count("shutting_down", "batch")] == [1, None]


def test_draining_refuses_and_waits_for_those_in_flight() -> None:
    gate = admission()
    permits = [gate.admit(request()) for _ in range(2)]
    assert gate.drain(0.0) == 2
    with pytest.raises(ShuttingDown):
        gate.admit(request())
    leaving = threading.Timer(0.02, lambda: [permit.release() for permit in permits])
    leaving.start()
    assert gate.drain(30.0) == 0
    leaving.join()


def test_the_gauge_shows_requests_in_flight() -> None:
    metrics = Metrics()
    gate = admission(metrics=metrics)
    with held(gate, request()), held(gate, request()):
        assert metrics.registry.get_sample_value("flame_in_flight") == 2
    assert metrics.registry.get_sample_value("flame_in_flight") == 0


def test_many_threads_never_exceed_the_limit() -> None:
    gate = admission(limit=4)
    seen: list[int] = []

    def work(_: int) -> str:
        try:
            with held(gate, request()):
                seen.append(gate.in_flight)
                time.sleep(0.0002)
        except QueueFull:
            return "refused"
        return "done"

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(work, range(600)))
    assert max(seen) <= 4
    assert outcomes.count("done") == len(seen)
    assert gate.in_flight == 0


@given(st.lists(st.tuples(st.sampled_from(["admit", "late", "release"]), st.integers(0, 9)), max_size=60))
def test_counts_hold_under_any_order(steps: list[tuple[str, int]]) -> None:
    gate = admission(limit=3)
    held = []
    for step, which in steps:
        if step == "release" and held:
            held.pop(which % len(held)).release()
        elif step != "release":
            try:
                held.append(gate.admit(request(-1.0 if step == "late" else None)))
            except FlameError:
                assert step == "late" or len(held) == 3
        assert gate.in_flight == len(held)
