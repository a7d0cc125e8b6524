from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.config import OrchestratorConfig
from flame.engine.spec import HstuConfig, ModelSpec, Profile, ProfileCost, Task
from flame.errors import DeadlineExceeded, FlameError, QueueFull, ShuttingDown
from flame.metrics import Metrics
from flame.orchestrator.admission import Admission
from flame.orchestrator.profiles import ProfileSet
from flame.records import History, RankRequest
from flame.schema import InputSchema, ItemTable

SCHEMA = InputSchema(ItemTable(100, 8), max_history=20, max_candidates=100, actions=2)
SPEC = ModelSpec("m", "1", (Task("t"),), SCHEMA, hstu=HstuConfig(8, 1, 1, 8, 8))
COST_MS = 1000.0


def admission(limit: int = 3, executors: int = 1, metrics: Metrics | None = None) -> Admission:
    """Every request is predicted to take one second."""
    only = Profile(1, 20, 100)
    profiles = ProfileSet(SPEC, [only], {only: ProfileCost(COST_MS, COST_MS, COST_MS)})
    return Admission(
        SCHEMA, profiles, OrchestratorConfig(max_in_flight=limit, executors=executors), metrics or Metrics()
    )


def request(seconds: float | None = None, history: int | None = None) -> RankRequest:
    column = np.zeros(history or 0, np.int64)
    deadline = None if seconds is None else time.monotonic() + seconds
    events = None if history is None else History(column, column, column)
    return RankRequest(user=1, candidates=np.arange(5), history=events, deadline=deadline)


def test_one_more_than_the_limit_is_refused_until_one_leaves() -> None:
    gate = admission(limit=2)
    first, _second = gate.admit(request()), gate.admit(request())
    with pytest.raises(QueueFull, match="2 requests"):
        gate.admit(request())
    first.release()
    with gate.admit(request()):
        assert gate.in_flight == 2
    assert gate.in_flight == 1


def test_releasing_twice_counts_once() -> None:
    gate = admission(limit=2)
    kept = gate.admit(request())
    with gate.admit(request()) as permit:
        permit.release()
    permit.release()
    assert gate.in_flight == 1
    kept.release()
    assert gate.in_flight == 0


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
    with pytest.raises(DeadlineExceeded, match=r"expected in 1000\.0 ms"):
        admission().admit(request(0.9, history))
    admission().admit(request(60, history))


def test_work_ahead_counts_divided_by_the_executors() -> None:
    gate = admission(limit=9)
    for _ in range(3):
        gate.admit(request())
    with pytest.raises(DeadlineExceeded, match=r"expected in 4000\.0 ms"):
        gate.admit(request(3.9))
    wide = admission(limit=9, executors=3)
    for _ in range(3):
        wide.admit(request())
    wide.admit(request(2.9))


def test_observations_correct_predictions() -> None:
    gate = admission(limit=9)
    for _ in range(200):
        gate.observe(predicted_ms=2.0, spent_ms=1.0)
    assert gate.correction == pytest.approx(0.5, rel=1e-3)
    gate.admit(request(0.6))
    with pytest.raises(DeadlineExceeded, match=r"expected in 10\d\d\.\d ms"):
        gate.admit(request(0.9))


def test_an_idle_server_tries_again_after_a_bad_time() -> None:
    gate = admission(limit=9)
    for _ in range(200):
        gate.observe(1.0, 1000.0)
    with gate.admit(request(2.0)), pytest.raises(DeadlineExceeded):
        gate.admit(request(10.0))


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
    with gate.admit(request()), gate.admit(request()):
        assert metrics.registry.get_sample_value("flame_in_flight") == 2
    assert metrics.registry.get_sample_value("flame_in_flight") == 0


def test_many_threads_never_exceed_the_limit() -> None:
    gate = admission(limit=4)
    seen: list[int] = []

    def work(_: int) -> str:
        try:
            with gate.admit(request()):
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
