"""Requests that leave before they are done: too late, cancelled, withdrawn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from flame.errors import (
    DeadlineExceeded,
    QueueFull,
    RequestCancelled,
)
from flame.records import Features
from tests.orchestrator.asking import ask, cancel_behind_another

Make = Callable[..., Features]


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
    gone = cancel_behind_another(orchestrator, engine, features(1, 5), features(2, 5))
    with pytest.raises(RequestCancelled):
        gone.result(60)
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
