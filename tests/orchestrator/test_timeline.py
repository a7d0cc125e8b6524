"""The timeline of a real orchestrator: what is on it, when, and how much."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from flame.errors import FlameError
from flame.orchestrator.timeline import LaunchSpan, Recording, Timeline
from flame.records import Features
from tests.orchestrator.asking import ask, cancel_behind_another

Make = Callable[..., Features]


def check(recording: Recording) -> None:
    """What holds of every recording that lost nothing."""
    numbers = [request.number for request in recording.requests]
    assert len(numbers) == len(set(numbers)), "a request is on the timeline twice"
    for request in recording.requests:
        assert request.submitted <= (request.started or request.ended) <= request.ended
        launches = [launch for launch in recording.launches if request.number in launch.members]
        assert len(launches) == request.launches
        assert all((request.started or 0) <= launch.filled <= launch.ended <= request.ended for launch in launches)
    for executor in {launch.executor for launch in recording.launches}:
        check_executor([launch for launch in recording.launches if launch.executor == executor])
    assert all(one.at <= other.at for one, other in pairwise(recording.queue))
    assert all(mark.requests >= 0 and mark.launches >= 0 for mark in recording.queue)


def check_executor(launches: list[LaunchSpan]) -> None:
    for launch in launches:
        assert launch.filled <= launch.launched <= launch.scored <= launch.ended
        assert 0 <= launch.candidates <= launch.slots
        assert launch.requests == len(set(launch.members)) >= 1
    assert all(one.ended <= other.filled for one, other in pairwise(launches)), "an executor ran two launches at a time"


def test_every_request_and_every_launch_is_there_once(start, features: Make) -> None:
    orchestrator, engine, metrics = start((1, 4), executors=3, max_in_flight=400, keep_states=4)
    rng = np.random.default_rng(3)
    requests = [features(int(rng.integers(0, 40)), int(rng.integers(1, 201))) for _ in range(300)]
    with ThreadPoolExecutor(4) as clients:
        futures = list(clients.map(lambda pair: ask(orchestrator, pair[1], user=pair[0]), enumerate(requests)))
    scored = [future.result(60) for future in futures]
    recording = orchestrator.timeline.snapshot()
    check(recording)
    assert sorted(request.user for request in recording.requests) == list(range(300))
    for request in recording.requests:
        answer = scored[request.user]
        assert (request.candidates, request.events) == (len(answer.scores), 15)
        assert (request.launches, request.reused, request.outcome) == (answer.launches, answer.reused, "ok")
        assert request.ended - request.submitted == pytest.approx((answer.queue_us + answer.compute_us) / 1e6)
    assert sum(launch.candidates for launch in recording.launches) == sum(len(answer.scores) for answer in scored)
    padding = sum(launch.slots - launch.candidates for launch in recording.launches)
    assert metrics.registry.get_sample_value("flame_padding_pairs_total") == padding
    ran = sorted((kind, str(profile)) for kind, profile in engine.log)
    assert sorted((launch.kind, launch.profile) for launch in recording.launches) == ran


def test_who_has_an_answer_is_on_the_timeline(start, features: Make) -> None:
    orchestrator, _, _ = start(executors=2)
    seen: list[Recording] = []
    for number in range(20):
        future = ask(orchestrator, features(number, 100), request_id=str(number))
        future.add_done_callback(lambda _: seen.append(orchestrator.timeline.snapshot()))
        future.result(60)
    for number, recording in enumerate(seen):
        check(recording)
        assert str(number) in {request.request_id for request in recording.requests}


def test_an_error_ends_the_spans_that_it_cut_short(start, features: Make) -> None:
    orchestrator, engine, _ = start()
    engine.fails = lambda kind, buffers: True
    with pytest.raises(FlameError) as caught:
        ask(orchestrator, features(1, 5)).result(60)
    recording = orchestrator.timeline.snapshot()
    check(recording)
    (launch,), (request,) = recording.launches, recording.requests
    assert launch.error == str(caught.value)
    assert launch.scored == launch.ended
    assert request.outcome == caught.value.kind


def test_a_request_that_was_dropped_in_the_queue_has_no_launch(start, features: Make) -> None:
    orchestrator, engine, _ = start()
    dropped = cancel_behind_another(orchestrator, engine, features(1, 5), features(2, 5))
    assert isinstance(dropped.exception(60), FlameError)
    recording = orchestrator.timeline.snapshot()
    check(recording)
    first, second = sorted(recording.requests)
    assert (first.outcome, second.outcome, second.started, second.launches) == ("ok", "cancelled", None, 0)
    assert second.ended > second.submitted
    assert max(mark.requests for mark in recording.queue) == 1


def test_reading_while_others_write(start, features: Make) -> None:
    orchestrator, _, _ = start(executors=3, max_in_flight=400)
    requests = [features(number, 70) for number in range(20)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as clients:
            answers = clients.map(lambda n: ask(orchestrator, requests[n % 20]).result(60), range(600))
            for _ in range(50):
                check(orchestrator.timeline.snapshot())
            assert len(list(answers)) == 600
    finally:
        sys.setswitchinterval(interval)
    assert len(orchestrator.timeline.snapshot().requests) == 600


def test_reading_a_full_timeline_that_changes_all_the_time() -> None:
    timeline = Timeline(5000)
    stop = threading.Event()

    def write() -> None:
        at = 0.0
        while not stop.is_set():
            at += 1.0
            timeline.queued(at, 1, 1)

    with ThreadPoolExecutor(1) as writer:
        done = writer.submit(write)
        try:
            for _ in range(100):
                queue = timeline.snapshot().queue
                assert all(one.at + 1.0 == other.at for one, other in pairwise(queue))
        finally:
            stop.set()
        done.result(60)
    assert len(timeline.snapshot().queue) <= 10_000


def test_memory_is_bounded(start, features: Make) -> None:
    orchestrator, _, _ = start(timeline_entries=10)
    for number in range(50):
        ask(orchestrator, features(number, 5), request_id=f"{number} " + "x" * 100_000).result(60)
    recording = orchestrator.timeline.snapshot()
    assert (len(recording.launches), len(recording.requests), len(recording.queue)) == (10, 10, 20)
    assert [request.number for request in recording.requests] == list(range(40, 50))
    assert all(len(request.request_id) == 64 for request in recording.requests)


def test_nothing_is_remembered_where_that_is_asked_for(start, features: Make) -> None:
    orchestrator, _, _ = start(timeline_entries=0)
    ask(orchestrator, features(1, 5)).result(60)
    assert orchestrator.timeline.snapshot() == Recording((), (), ())


def test_the_last_seconds_are_what_ended_in_them(start, features: Make) -> None:
    orchestrator, _, _ = start()
    ask(orchestrator, features(1, 5)).result(60)
    assert orchestrator.timeline.snapshot(3600.0) == orchestrator.timeline.snapshot()
    ended = orchestrator.timeline.snapshot().requests[0].ended
    while time.monotonic() <= ended:
        pass
    assert orchestrator.timeline.snapshot(0.0).requests == ()
