"""The orchestrator under load and under every kind of trouble."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flame.engine.backends.base import LaunchBuffers
from flame.errors import (
    DeadlineExceeded,
    ExecutionError,
    FlameError,
    HistoryTooLong,
    InvalidCandidates,
    QueueFull,
    RequestCancelled,
    ShuttingDown,
    TooManyCandidates,
)
from flame.orchestrator.outcome import Scored
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.ticket import Ticket
from flame.orchestrator.timeline import Timeline
from flame.records import Features
from tests.faulty_engine import until
from tests.orchestrator.asking import ask

Make = Callable[..., Features]
Expected = Callable[[Features], NDArray[np.float32]]


def sample(make: Make, count: int, seed: int = 0, longest: int = 15) -> list[Features]:
    """Requests of odd sizes: one candidate, sizes of profiles and their neighbours, the limit, no history."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 15, 16, 17, 63, 64, 65, 100, 129, 199, 200], count)
    return [
        make(seed * 100_000 + number, int(size), [int(n) for n in rng.integers(0, longest + 1, 2)])
        for number, size in enumerate(sizes)
    ]


def open_when_stopped(orchestrator: Orchestrator, gate: threading.Event) -> None:
    """Holds launches until all that waits has been cut."""
    while not orchestrator._stopped:
        time.sleep(0.001)
    gate.set()


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


def test_a_deadline_that_passes_in_the_queue_drops_the_request_before_any_launch(start, features: Make) -> None:
    orchestrator, engine, _ = start()
    engine.gate.clear()
    running = ask(orchestrator, features(1, 5))
    assert engine.entered.acquire(timeout=60)
    late = ask(orchestrator, features(2, 5), deadline=time.monotonic() + 0.02)
    patient = ask(orchestrator, features(3, 5), deadline=time.monotonic() + 600)
    time.sleep(0.03)
    engine.gate.set()
    with pytest.raises(DeadlineExceeded, match="in the queue"):
        late.result(60)
    assert running.result(60).launches == patient.result(60).launches == 1
    assert len(engine.log) == 2


def test_a_deadline_that_has_passed_is_never_worked_on(start, features: Make) -> None:
    orchestrator, engine, _ = start()
    with pytest.raises(DeadlineExceeded):
        ask(orchestrator, features(2, 5), deadline=time.monotonic() - 1).result(60)
    assert engine.log == []


def test_a_cancelled_request_is_dropped_before_it_starts(start, features: Make) -> None:
    orchestrator, engine, _ = start()
    engine.gate.clear()
    running = ask(orchestrator, features(1, 5))
    assert engine.entered.acquire(timeout=60)
    cancelled = threading.Event()
    gone = ask(orchestrator, features(2, 5), cancelled=cancelled)
    cancelled.set()
    engine.gate.set()
    with pytest.raises(RequestCancelled):
        gone.result(60)
    running.result(60)
    assert len(engine.log) == 1


def test_who_withdraws_leaves_the_queue_while_a_launch_runs(start, features: Make) -> None:
    orchestrator, engine, metrics = start(max_in_flight=2)
    engine.gate.clear()
    running = ask(orchestrator, features(1, 5))
    assert engine.entered.acquire(timeout=60)
    gone = ask(orchestrator, features(2, 5), deadline=time.monotonic() + 600)
    with pytest.raises(QueueFull):
        ask(orchestrator, features(3, 5))
    orchestrator.withdraw(gone.ticket)
    with pytest.raises(RequestCancelled):
        gone.result(0)
    assert len(orchestrator._schedule._pending) == 0
    waiting = ask(orchestrator, features(3, 5))
    engine.gate.set()
    assert running.result(60).launches == waiting.result(60).launches == 1
    labels = {"stage": "queue", "reason": "cancelled", "priority": "interactive"}
    assert metrics.registry.get_sample_value("flame_refused_total", labels) == 1
    orchestrator.withdraw(waiting.ticket)


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


def test_cancelling_between_slices_drops_the_slices_that_have_not_begun(start, features: Make) -> None:
    orchestrator, engine, _ = start()
    engine.gate.clear()
    cancelled = threading.Event()
    future = ask(orchestrator, features(1, 200), cancelled=cancelled)
    assert engine.entered.acquire(timeout=60)
    cancelled.set()
    assert not future.done(), "an executor still reads its features"
    engine.gate.set()
    with pytest.raises(RequestCancelled):
        future.result(60)
    assert engine.log == [("encode", engine.profiles[0])]


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


def test_a_request_is_answered_only_when_no_executor_works_on_it_any_more(start, features: Make) -> None:
    orchestrator, engine, _ = start(executors=2)
    both, hold = threading.Barrier(2), threading.Event()

    def first_fails_while_second_runs(kind: str, buffers: LaunchBuffers) -> bool:
        if kind != "score":
            return False
        if both.wait(60) == 0:
            return True
        assert hold.wait(60)
        return False

    engine.fails = first_fails_while_second_runs
    future = ask(orchestrator, features(1, 128))
    bystander = ask(orchestrator, features(2, 5))
    assert bystander.result(60).launches == 1, "the executor whose launch failed goes on"
    assert not future.done()
    hold.set()
    with pytest.raises(ExecutionError, match="score"):
        future.result(60)


def test_cancelled_requests_take_no_room_in_a_shared_launch(start, features: Make) -> None:
    orchestrator, engine, _ = start((1, 4))
    engine.gate.clear()
    running = ask(orchestrator, features(0, 5))
    assert engine.entered.acquire(timeout=60)
    cancelled = threading.Event()
    gone = [ask(orchestrator, features(number, 5), cancelled=cancelled) for number in (1, 2, 3)]
    kept = ask(orchestrator, features(4, 5))
    cancelled.set()
    engine.gate.set()
    assert running.result(60).launches == kept.result(60).launches == 1
    assert [profile.users for _, profile in engine.log] == [1, 1]
    assert all(isinstance(future.exception(60), RequestCancelled) for future in gone)


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


def test_closing_finishes_what_can_be_finished(start, features: Make, expected: Expected) -> None:
    orchestrator, _, _ = start(executors=2, max_in_flight=100)
    requests = sample(features, 60)
    futures = [ask(orchestrator, request) for request in requests]
    assert orchestrator.close(60.0) == 0
    for request, future in zip(requests, futures, strict=True):
        assert future.done()
        np.testing.assert_array_equal(future.result().scores, expected(request))
    with pytest.raises(ShuttingDown):
        ask(orchestrator, features(1, 1))


def test_closing_while_busy_answers_everyone_and_counts_the_cut(start, features: Make, expected: Expected) -> None:
    orchestrator, engine, _ = start(executors=2, max_in_flight=100)
    engine.gate.clear()
    requests = sample(features, 40)
    futures = [ask(orchestrator, request) for request in requests]
    assert engine.entered.acquire(timeout=60)
    opening = threading.Thread(target=open_when_stopped, args=(orchestrator, engine.gate))
    opening.start()
    cut = orchestrator.close(0.05)
    opening.join()
    assert not orchestrator.running
    errors = [future.exception(0) for future in futures]
    assert cut == sum(isinstance(error, ShuttingDown) for error in errors) >= 36
    for request, future, error in zip(requests, futures, errors, strict=True):
        assert error is None or isinstance(error, ShuttingDown)
        if error is None:
            np.testing.assert_array_equal(future.result().scores, expected(request))
    assert orchestrator.close() == 0


@pytest.mark.parametrize("candidates", [5, 200], ids=["in its last launch", "with slices to come"])
def test_closing_does_not_wait_for_ever_for_an_engine_that_hangs(
    start, features: Make, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flame.orchestrator.pool._LAST_LAUNCH_S", 0.05)
    orchestrator, engine, _ = start()
    engine.gate.clear()
    stuck = ask(orchestrator, features(1, candidates))
    assert engine.entered.acquire(timeout=60)
    assert orchestrator.close(0.0) == 1
    assert orchestrator.running
    with pytest.raises(ShuttingDown):
        stuck.result(0)
    engine.gate.set()


@pytest.mark.parametrize("keep", [0, 6], ids=["forgetting", "keeping states"])
def test_nothing_leaks_in_a_thousand_mixed_outcomes(start, features: Make, expected: Expected, keep: int) -> None:
    orchestrator, engine, metrics = start((1, 4), executors=3, max_in_flight=50, keep_states=keep)
    free = orchestrator._schedule.devices[0].reuse.pool.free()
    rng = np.random.default_rng(5)
    engine.fails = lambda kind, buffers: rng.random() < 0.05
    requests = sample(features, 50)
    answers: list[tuple[Features, Future[Scored]]] = []
    outcomes: dict[str, int] = {}
    slots = threading.Semaphore(50)
    for number in range(1000):
        request = requests[number % 50]
        cancelled = threading.Event()
        deadline = time.monotonic() + 0.0005 if number % 7 == 0 else None
        slots.acquire()
        try:
            future = ask(orchestrator, request, deadline=deadline, cancelled=cancelled)
        except QueueFull:
            slots.release()
            outcomes["QueueFull"] = outcomes.get("QueueFull", 0) + 1
            continue
        future.add_done_callback(lambda _: slots.release())
        if number % 11 == 0:
            cancelled.set()
        answers.append((request, future))
    for request, future in answers:
        error = future.exception(60)
        assert error is None or isinstance(error, FlameError)
        outcomes[type(error).__name__] = outcomes.get(type(error).__name__, 0) + 1
        if error is None:
            np.testing.assert_array_equal(future.result().scores, expected(request))
    assert sum(outcomes.values()) == 1000
    assert {"NoneType", "ExecutionError", "RequestCancelled"} <= set(outcomes)
    assert orchestrator._schedule.alive == 0
    assert orchestrator._schedule.waiting == 0
    until(lambda: sum(device.idle for device in orchestrator._schedule.devices) == 3)
    assert orchestrator._schedule.devices[0].reuse.pool.free() == free
    assert metrics.registry.get_sample_value("flame_queued_launches") == 0


def test_whatever_waits_for_an_answer_cannot_stop_an_executor(start, features: Make) -> None:
    orchestrator, _, _ = start()
    told: list[object] = []

    def fails(outcome: object) -> None:
        told.append(outcome)
        raise SystemExit

    orchestrator.submit(features(1, 5), fails)
    assert ask(orchestrator, features(2, 5)).result(60).scores.shape == (5, 2)
    assert len(told) == 1


def test_an_answer_does_not_depend_on_what_is_written_down(start, features: Make, monkeypatch) -> None:
    orchestrator, _, _ = start()

    def fails(self: Timeline, ticket: Ticket) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(Timeline, "answered", fails)
    for seed in range(3):
        assert ask(orchestrator, features(seed, 5)).result(60).scores.shape == (5, 2)
