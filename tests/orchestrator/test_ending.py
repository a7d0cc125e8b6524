"""Every request ends in one answer, whatever happens meanwhile, and when the orchestrator closes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
from numpy.typing import NDArray

from flame.engine.backends.base import LaunchBuffers
from flame.errors import (
    ExecutionError,
    FlameError,
    QueueFull,
    ShuttingDown,
)
from flame.orchestrator.outcome import Scored
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.ticket import Ticket
from flame.orchestrator.timeline import Timeline
from flame.records import Features
from tests.faulty_engine import until
from tests.orchestrator.asking import ask, sample

Make = Callable[..., Features]
Expected = Callable[[Features], NDArray[np.float32]]


def open_when_stopped(orchestrator: Orchestrator, gate: threading.Event) -> None:
    """Holds launches until all that waits has been cut."""
    while not orchestrator._stopped:
        time.sleep(0.001)
    gate.set()


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
