"""The orchestrator under load and under every kind of trouble."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flame.errors import (
    ExecutionError,
    HistoryTooLong,
    InvalidCandidates,
    QueueFull,
    TooManyCandidates,
)
from flame.orchestrator.outcome import Scored
from flame.records import Features
from tests.orchestrator.asking import ask, sample

Make = Callable[..., Features]
Expected = Callable[[Features], NDArray[np.float32]]


@pytest.mark.parametrize(
    ("users", "executors", "histories"),
    [
        pytest.param((1,), 1, (30,), id="one executor"),
        pytest.param((1,), 3, (30,), id="three executors"),
        pytest.param((1, 4), 3, (30,), id="packed launches"),
        pytest.param((3,), 2, (8, 30), id="only packed profiles, two history lengths"),
    ],
)
def test_every_request_gets_its_own_scores(
    start, features: Make, expected: Expected, users: tuple[int, ...], executors: int, histories: tuple[int, ...]
) -> None:
    orchestrator, engine, metrics = start(users, histories=histories, executors=executors, max_in_flight=400)
    allocated = engine.allocated
    requests = sample(features, 300)
    with ThreadPoolExecutor(4) as clients:
        futures = list(clients.map(partial(ask, orchestrator), requests))
    for request, future in zip(requests, futures, strict=True):
        np.testing.assert_array_equal(future.result(60).scores, expected(request))
    assert engine.allocated == allocated, "nothing is allocated on the request path"
    kinds = {kind for kind, _ in engine.log}
    assert kinds == {"rank", "encode", "score"}
    if 4 in users:
        assert {profile.users for _, profile in engine.log} == {1, 4}
    assert metrics.registry.get_sample_value("flame_queued_launches") == 0


@pytest.mark.parametrize("policy", ["largest-first", "implicit"])
def test_a_baseline_policy_gives_the_same_scores(start, features: Make, expected: Expected, policy: str) -> None:
    orchestrator, engine, _ = start((1, 4), histories=(8, 30), policy=policy, executors=2, max_in_flight=100)
    requests = sample(features, 60)
    for request, future in [(request, ask(orchestrator, request)) for request in requests]:
        np.testing.assert_array_equal(future.result(60).scores, expected(request))
    assert {(kind, profile.users) for kind, profile in engine.log} == {("rank", 1)}
    if policy == "implicit":
        assert {(profile.history, profile.candidates) for _, profile in engine.log} == {(30, 64)}


def test_scores_say_how_they_came_about(start, features: Make) -> None:
    orchestrator, engine, metrics = start()
    scored = ask(orchestrator, features(1, 150)).result(60)
    assert scored.launches == len(engine.log) == 4
    assert scored.queue_us >= 0
    assert scored.compute_us > 0
    value = metrics.registry.get_sample_value
    assert value("flame_launches_total", {"profile": "1x30+16", "kind": "encode"}) == 1
    assert value("flame_launches_total", {"profile": "1x30+64", "kind": "score"}) == 3
    assert value("flame_padding_pairs_total") == 3 * 64 - 150


def test_requests_that_cannot_run_are_refused_at_once(start, features: Make) -> None:
    orchestrator, _, _ = start(histories=(8,))
    with pytest.raises(TooManyCandidates, match="201"):
        ask(orchestrator, features(1, 201, (1, 1)))
    with pytest.raises(HistoryTooLong, match="5 events"):
        ask(orchestrator, features(1, 1, (1, 5)))
    with pytest.raises(InvalidCandidates):
        ask(orchestrator, features(1, 0, (1, 1)))


def test_a_full_queue_refuses_and_recovers(start, features: Make, expected: Expected) -> None:
    orchestrator, engine, _ = start(max_in_flight=3)
    engine.gate.clear()
    requests = sample(features, 3)
    futures = [ask(orchestrator, request) for request in requests]
    with pytest.raises(QueueFull, match="3 requests"):
        ask(orchestrator, features(9, 5))
    engine.gate.set()
    for request, future in zip(requests, futures, strict=True):
        np.testing.assert_array_equal(future.result(60).scores, expected(request))
    late = features(9, 5)
    np.testing.assert_array_equal(ask(orchestrator, late).result(60).scores, expected(late))


def test_batch_requests_wait_for_interactive_ones_and_users_take_turns(start, features: Make) -> None:
    orchestrator, engine, _ = start(max_in_flight=20)
    engine.gate.clear()
    first = ask(orchestrator, features(0, 5))
    assert engine.entered.acquire(timeout=60)
    order: list[str] = []

    def submit(name: str, **whose: Any) -> Future[Scored]:
        future = ask(orchestrator, features(len(name), 5), **whose)
        future.add_done_callback(lambda _: order.append(name))
        return future

    futures = [submit("batch", user=1, priority="batch")]
    futures += [submit(f"greedy {number}", user=2) for number in range(3)]
    futures += [submit("modest", user=3)]
    engine.gate.set()
    for future in (first, *futures):
        future.result(60)
    assert order == ["greedy 0", "modest", "greedy 1", "greedy 2", "batch"]


def test_batch_requests_take_no_room_from_interactive_ones(start, features: Make) -> None:
    orchestrator, engine, _ = start(max_in_flight=2)
    engine.gate.clear()
    futures = [ask(orchestrator, features(number, 5), priority="batch") for number in range(2)]
    with pytest.raises(QueueFull):
        ask(orchestrator, features(8, 5), priority="batch")
    futures += [ask(orchestrator, features(number, 5)) for number in range(2)]
    with pytest.raises(QueueFull):
        ask(orchestrator, features(9, 5))
    engine.gate.set()
    assert all(future.result(60) for future in futures)


def test_slices_of_one_request_run_on_all_executors_and_each_request_encodes(
    start, features: Make, expected: Expected
) -> None:
    orchestrator, engine, _ = start(executors=2)
    engine.gate.clear()
    requests = [features(1, 200), features(2, 200)]
    futures = [ask(orchestrator, requests[0])]
    engine.gated = {"score"}
    for _ in range(3):
        assert engine.entered.acquire(timeout=60)
    assert [kind for kind, _ in engine.log] == ["encode", "score", "score"]
    engine.gate.set()
    np.testing.assert_array_equal(futures[0].result(60).scores, expected(requests[0]))
    engine.gate.clear()
    engine.gated = {"encode"}
    engine.log.clear()
    futures = [ask(orchestrator, request) for request in requests]
    while len(engine.log) < 2:
        assert engine.entered.acquire(timeout=60)
    assert [kind for kind, _ in engine.log] == ["encode", "encode"], "there is a state for each executor"
    engine.gate.set()
    for request, future in zip(requests, futures, strict=True):
        np.testing.assert_array_equal(future.result(60).scores, expected(request))


def test_a_failed_launch_fails_the_requests_in_it_and_nobody_else(
    start, features: Make, expected: Expected, caplog: pytest.LogCaptureFixture
) -> None:
    orchestrator, engine, _ = start((1, 4), executors=2, max_in_flight=100)
    requests = sample(features, 80)
    marked = {int(request.words[request.layout.candidates_start]) for request in requests[::8]}

    def holds_a_marked_candidate(kind: str, buffers) -> bool:
        views = buffers.layout.views(buffers.words)
        return kind != "encode" and bool(np.isin(views.candidates[:, :, 0], list(marked)).any())

    engine.fails = holds_a_marked_candidate
    futures = [ask(orchestrator, request) for request in requests]
    failed = 0
    for number, (request, future) in enumerate(zip(requests, futures, strict=True)):
        error = future.exception(60)
        if error is None:
            assert number % 8, "a request with a marked candidate was answered"
            np.testing.assert_array_equal(future.result().scores, expected(request))
        else:
            failed += 1
            assert isinstance(error, ExecutionError)
            assert "RuntimeError" in str(error)
            assert "0xdeadbeef" not in str(error), "details stay in the log"
    assert 10 <= failed < 80
    assert "0xdeadbeef" in caplog.text
    engine.fails = lambda kind, buffers: False
    again = features(77, 200)
    np.testing.assert_array_equal(ask(orchestrator, again).result(60).scores, expected(again))


def test_a_failed_encode_fails_the_request_without_scoring(start, features: Make) -> None:
    orchestrator, engine, _ = start(executors=2)
    engine.fails = lambda kind, buffers: kind == "encode"
    with pytest.raises(ExecutionError, match="encode"):
        ask(orchestrator, features(1, 200)).result(60)
    assert "score" not in {kind for kind, _ in engine.log}


def test_a_planner_that_fails_fails_its_requests_only(start, features: Make, expected: Expected) -> None:
    orchestrator, _, _ = start()
    original = orchestrator._schedule._batching._planner
    orchestrator._schedule._batching._planner = lambda *args: 1 / 0
    with pytest.raises(ExecutionError, match="ZeroDivisionError"):
        ask(orchestrator, features(1, 5)).result(60)
    orchestrator._schedule._batching._planner = original
    request = features(2, 5)
    np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))
