"""Who is let in, for how long, and who leaves early."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest
from msgspec.structs import replace

from flame.errors import DeadlineExceeded, InvalidPriority, QueueFull, RequestError, TooManyCandidates
from flame.in_flight import InFlight
from flame.orchestrator.forecast import Forecast
from flame.records import RankRequest
from tests.faulty_engine import until
from tests.ranker.parts import close_to


def test_wrong_requests_are_refused_before_any_work(bench) -> None:
    one = bench()
    limit = one.spec.input.max_candidates
    with pytest.raises(TooManyCandidates):
        one.ranker.start(RankRequest(user=1, candidates=np.arange(1, limit + 2)))
    with pytest.raises(RequestError):
        one.ranker.start(RankRequest(user=1, candidates=np.zeros(0, np.int64)))
    with pytest.raises(DeadlineExceeded):
        one.ranker.start(RankRequest(user=1, candidates=np.arange(1, 5), deadline=time.monotonic() - 1))
    assert one.clean()
    assert one.ranker.statistics().failed == 0


def test_no_more_than_the_limit_are_let_in(bench) -> None:
    one = bench(max_in_flight=3)
    one.engine.gate.clear()
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    answers = [one.ranker.start(request) for _ in range(3)]
    for _ in range(20):
        with pytest.raises(QueueFull):
            one.ranker.start(request)
    one.engine.gate.set()
    for answer in answers:
        close_to(answer.result(60), one.oracle(request))
    assert one.metrics.registry.get_sample_value("flame_in_flight") == 0
    one.ranker.rank(request)


def test_a_caller_who_has_an_answer_may_ask_again_at_once(bench) -> None:
    ranker = bench(max_in_flight=1).ranker
    for _ in range(50):
        assert len(ranker.rank(RankRequest(user=1, candidates=np.arange(1, 5))).scores) == 4


def test_the_default_deadline_holds_for_requests_without_one(bench) -> None:
    one = bench(default_deadline_ms=200.0)
    one.engine.gate.clear()
    hurried = RankRequest(user=1, candidates=np.arange(1, 5))
    patient = replace(hurried, deadline=time.monotonic() + 600)
    running = one.ranker.start(patient)
    assert one.engine.entered.acquire(timeout=60)
    late, waiting = one.ranker.start(hurried), one.ranker.start(patient)
    time.sleep(0.25)
    one.engine.gate.set()
    assert running.result(60).launches == waiting.result(60).launches == 1
    with pytest.raises(DeadlineExceeded):
        late.result(60)


def test_cancelling_ends_the_wait_at_once_and_drops_the_work(bench) -> None:
    one = bench(max_in_flight=3)
    one.engine.gate.clear()
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    running = one.ranker.start(request)
    assert one.engine.entered.acquire(timeout=60)
    gone = one.ranker.start(request)
    assert gone.cancel()
    with pytest.raises(CancelledError):
        gone.result(0)
    one.engine.gate.set()
    running.result(60)
    assert not running.cancel()
    one.ranker.rank(request)
    assert len(one.engine.log) == 2


def test_a_request_cancelled_in_the_queue_gives_its_permit_back_while_a_launch_runs(bench) -> None:
    one = bench(max_in_flight=2)
    one.engine.gate.clear()
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    running = one.ranker.start(request)
    assert one.engine.entered.acquire(timeout=60)
    for _ in range(20):
        gone = one.ranker.start(request)
        gone.cancel()
        while one.ranker._orchestrator.admission.in_flight > 1:
            time.sleep(0.001)
    one.engine.gate.set()
    running.result(60)
    assert len(one.engine.log) == 1
    assert one.ranker.statistics().failed == 20


def test_an_unknown_priority_is_a_mistake(bench) -> None:
    with pytest.raises(InvalidPriority, match="'urgent'"):
        bench().ranker.start(RankRequest(user=1, candidates=np.arange(1, 5), priority="urgent"))


def test_the_first_candidates_are_scored_where_time_is_short(bench) -> None:
    one = bench(overload="truncate", candidates=(8, 16, 23))
    profiles = one.ranker._orchestrator.profiles
    request = RankRequest(user=1, candidates=np.arange(1, 24))
    whole = one.ranker.rank(replace(request, deadline=time.monotonic() + 600))
    assert not whole.truncated
    assert len(whole.scores) == 23
    profiles.predict = lambda events, candidates: 60_000.0 * candidates  # a minute each
    for minutes, left in ((22, 16), (9, 8)):
        one.ranker._orchestrator.admission._forecast = Forecast(1)
        response = one.ranker.rank(replace(request, deadline=time.monotonic() + 60 * minutes))
        assert (response.truncated, len(response.scores)) == (True, left)
        close_to(response, whole.scores[:left])
    one.ranker._orchestrator.admission._forecast = Forecast(1)
    with pytest.raises(DeadlineExceeded):
        one.ranker.rank(replace(request, deadline=time.monotonic() + 60 * 7))
    assert one.metrics.registry.get_sample_value("flame_truncated_total") == 2
    assert one.metrics.registry.get_sample_value("flame_pairs_total") == 23 + 16 + 8


def test_a_request_cancelled_before_its_thread_starts_costs_nothing(bench, monkeypatch) -> None:
    one = bench()
    entered, go = threading.Event(), threading.Event()
    inner = InFlight.gather

    def slow(request: InFlight) -> None:
        entered.set()
        assert go.wait(60)
        inner(request)

    monkeypatch.setattr(InFlight, "gather", slow)
    answer = one.ranker.start(RankRequest(user=1, candidates=np.arange(1, 5)))
    assert entered.wait(60)
    answer.cancel()
    go.set()
    one.ranker._orchestrator.admission.drain(60)
    assert one.features.gathered == len(one.engine.log) == 0
    assert one.clean()


def test_numbers_of_numpy_are_as_good_as_those_of_python(bench) -> None:
    one = bench()
    candidates = np.arange(1, 5)
    deadline = np.float64(time.monotonic() + 600)
    response = one.ranker.rank(RankRequest(np.int64(7), candidates, deadline=deadline))  # type: ignore[arg-type]
    np.testing.assert_array_equal(response.scores, one.ranker.rank(RankRequest(7, candidates)).scores)
    assert type(one.ranker.timeline.snapshot().requests[0].user) is int


def test_an_answered_request_is_no_garbage_in_a_circle(bench) -> None:
    one = bench()
    gone: list[weakref.ref[object]] = []
    gc.collect()
    gc.disable()
    try:
        for number in range(1, 20):
            answer = one.ranker.start(RankRequest(number, np.arange(1, 5)))
            answer.result(60)
            gone.append(weakref.ref(answer))
        del answer
        one.ranker._orchestrator.admission.drain(60)
        until(lambda: not any(reference() for reference in gone))
        assert len(gone) == 19
        assert [reference() for reference in gone] == [None] * 19
    finally:
        gc.enable()
