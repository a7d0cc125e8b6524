"""Executors that fail or hang: their requests are told, they are rebuilt or stay out, and the others go on."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flame.engine.backends.base import LaunchBuffers
from flame.errors import (
    DeadlineExceeded,
    EngineFailed,
    ExecutionError,
    FlameError,
    InvalidLaunch,
    QueueFull,
    ShuttingDown,
)
from flame.layout import CANDIDATES
from flame.metrics import Metrics
from flame.orchestrator.outcome import Scored
from flame.records import Features
from tests.faulty_engine import PATIENCE_S, nth, until
from tests.orchestrator.asking import ask

Make = Callable[..., Features]
Expected = Callable[[Features], NDArray[np.float32]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.orchestrator.supervise._PAUSE_S", 0.001)


def executors(metrics: Metrics) -> tuple[int, int, int]:
    """How many run, are being rebuilt, and are out."""
    value = metrics.registry.get_sample_value
    return tuple(
        int(value("flame_executors", {"device": "cpu", "state": state}) or 0)
        for state in ("running", "rebuilding", "out")
    )


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"flame_{name}_total", {"device": "cpu", **labels}) or 0.0


def test_a_failed_launch_costs_the_executor_its_buffers_and_a_new_one_serves(
    start, features: Make, expected: Expected
) -> None:
    orchestrator, engine, metrics = start()
    before, old = engine.allocated, orchestrator._supervisor._posts[0].executor
    engine.fails, engine.error = nth(1), lambda: torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ExecutionError, match="OutOfMemoryError"):
        ask(orchestrator, features(1, 5)).result(60)
    request = features(2, 200)
    np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))
    assert engine.allocated == before + len(engine.profiles)
    assert orchestrator._supervisor._posts[0].executor is not old
    assert executors(metrics) == (1, 0, 0)
    assert counted(metrics, "executor_rebuilds", outcome="ok") == 1
    assert counted(metrics, "launches_failed", reason="error") == 1


def test_a_launch_that_the_engine_refuses_costs_no_rebuild(start, features: Make, expected: Expected) -> None:
    orchestrator, engine, metrics = start()
    before = engine.allocated
    engine.refuses = nth(1)
    with pytest.raises(InvalidLaunch):
        ask(orchestrator, features(1, 5)).result(60)
    request = features(2, 5)
    np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))
    assert engine.allocated == before
    assert counted(metrics, "launches_failed", reason="refused") == 1
    assert counted(metrics, "executor_rebuilds", outcome="ok") == 0


def test_others_go_on_while_an_executor_is_rebuilt(start, features: Make, expected: Expected) -> None:
    orchestrator, engine, metrics = start(executors=2)
    engine.allocates = False
    engine.fails = nth(1)
    with pytest.raises(ExecutionError):
        ask(orchestrator, features(1, 5)).result(60)
    for seed in range(20):
        request = features(seed, 200)
        np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))
    until(lambda: executors(metrics) == (1, 0, 1))
    assert counted(metrics, "executor_rebuilds", outcome="failed") == 5
    engine.allocates = True
    request = features(99, 200)
    np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))
    assert not orchestrator.failed.done()


def test_an_engine_that_is_broken_for_good_leaves_no_request_waiting(
    start, features: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Allocations go well, but no launch does: only a trial finds out."""
    orchestrator, engine, metrics = start(executors=2, max_in_flight=100)
    engine.gate.clear()
    engine.fails = lambda kind, buffers: True
    futures = [ask(orchestrator, features(seed, 200)) for seed in range(40)]
    engine.gate.set()
    errors = [type(future.exception(60)) for future in futures]
    assert set(errors) <= {ExecutionError, EngineFailed}
    orchestrator.failed.result(60)
    assert errors.count(ExecutionError) >= 2
    for _ in range(3):
        with pytest.raises(EngineFailed, match="restarted"):
            ask(orchestrator, features(1, 5))
        with pytest.raises(EngineFailed):
            orchestrator.check()
    assert executors(metrics) == (0, 0, 2)
    assert orchestrator._schedule.alive == orchestrator._schedule.waiting == 0
    assert "restart the process" in caplog.text
    until(lambda: not orchestrator.running)


def test_a_hang_fails_its_requests_and_another_executor_takes_the_place(
    start, features: Make, expected: Expected
) -> None:
    orchestrator, engine, metrics = start(launch_limit_ms=50)
    engine.hangs = nth(1)
    with pytest.raises(ExecutionError, match=r"longer than 50 ms \(orchestrator.launch_limit_ms\)"):
        ask(orchestrator, features(1, 5)).result(60)
    for seed in range(5):
        request = features(seed, 200)
        np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))
    assert executors(metrics) == (1, 0, 0)
    assert counted(metrics, "launches_failed", reason="hang") == 1
    assert orchestrator._supervisor._posts[0].hung == 1
    engine.release()
    until(lambda: orchestrator._supervisor._posts[0].hung == 0)


@pytest.mark.parametrize("kind", ["rank", "encode", "score"])
def test_what_comes_back_late_touches_nothing(start, features: Make, expected: Expected, kind: str) -> None:
    """The buffers of the request were given back and filled with something else, and others are in the states."""
    orchestrator, engine, metrics = start(launch_limit_ms=50, keep_states=0 if kind == "rank" else 4)
    free = orchestrator._schedule.devices[0].reuse.pool.free()
    engine.hangs = nth(1, kinds=[kind])
    request = features(1, 200 if kind != "rank" else 5)
    future = ask(orchestrator, request)
    ticket = future.ticket
    with pytest.raises(ExecutionError, match=kind):
        future.result(60)
    request.words[:] = 0
    scores = ticket.scores.copy()
    until(lambda: executors(metrics) == (1, 0, 0))
    assert orchestrator._schedule.devices[0].reuse.pool.free() == free, "what the launch took with it was replaced"
    others = [features(seed, 200) for seed in range(2, 12)]
    answers = [ask(orchestrator, other).result(60).scores for other in others]
    engine.release()
    until(lambda: orchestrator._supervisor._posts[0].hung == 0)
    again = [ask(orchestrator, other).result(60) for other in others]
    for other, answer, later in zip(others, answers, again, strict=True):
        np.testing.assert_array_equal(answer, expected(other))
        np.testing.assert_array_equal(later.scores, expected(other))
    np.testing.assert_array_equal(ticket.scores, scores)
    assert orchestrator._schedule.devices[0].reuse.pool.free() == free


def test_a_history_whose_encode_hangs_is_encoded_for_those_who_wait(start, features: Make, expected: Expected) -> None:
    orchestrator, engine, _ = start(executors=2, launch_limit_ms=50, keep_states=4)
    engine.hangs = nth(1, kinds=["encode"])
    request = features(1, 200)
    first = ask(orchestrator, request)
    assert engine.hanging.acquire(timeout=60)
    others = [ask(orchestrator, request) for _ in range(3)]
    with pytest.raises(ExecutionError, match="encode"):
        first.result(60)
    for other in others:
        np.testing.assert_array_equal(other.result(60).scores, expected(request))


def test_a_request_is_answered_when_its_last_launch_hangs_too(start, features: Make) -> None:
    orchestrator, engine, _ = start(executors=2, launch_limit_ms=50)
    engine.hangs = nth(1, 2, kinds=["score"])
    with pytest.raises(ExecutionError, match="score"):
        ask(orchestrator, features(1, 128)).result(60)
    assert orchestrator._schedule.alive == 0


def test_hanging_again_and_again_takes_an_executor_out(start, features: Make) -> None:
    orchestrator, engine, metrics = start(launch_limit_ms=20)
    engine.hangs = lambda kind, buffers: buffers.layout.views(buffers.words).header[0, CANDIDATES] == 5
    futures = [ask(orchestrator, features(seed, 5)) for seed in range(3)]
    assert {type(future.exception(60)) for future in futures} <= {ExecutionError, EngineFailed}
    orchestrator.failed.result(60)
    assert executors(metrics) == (0, 0, 1)
    assert orchestrator.running, "the engine must stay open for the threads that are gone"
    engine.heal()
    until(lambda: not orchestrator.running)


def test_a_rebuild_that_hangs_is_given_up_too(
    start, features: Make, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flame.orchestrator.supervise._REBUILD_S", 0.05)
    orchestrator, engine, metrics = start(launch_limit_ms=30)
    engine.fails = nth(1)
    engine.hangs = nth(1)  # counts those that do not fail: the trial is the first
    with pytest.raises(ExecutionError):
        ask(orchestrator, features(1, 5)).result(60)
    request = features(2, 200)
    np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))
    assert executors(metrics) == (1, 0, 0)
    assert sum(device.idle for device in orchestrator._schedule.devices) <= 1


def test_without_a_limit_a_launch_may_take_its_time(start, features: Make, expected: Expected) -> None:
    orchestrator, engine, _ = start(launch_limit_ms=0)
    engine.hangs = nth(1)
    request = features(1, 5)
    future = ask(orchestrator, request)
    assert engine.hanging.acquire(timeout=60)
    time.sleep(0.05)
    engine.release()
    np.testing.assert_array_equal(future.result(60).scores, expected(request))


def test_closing_waits_for_a_hang_no_longer_than_its_limit(start, features: Make) -> None:
    orchestrator, engine, _ = start(launch_limit_ms=50)
    engine.hangs = nth(1)
    future = ask(orchestrator, features(1, 5))
    assert engine.hanging.acquire(timeout=60)
    began = time.monotonic()
    assert orchestrator.close(PATIENCE_S) == 0
    assert time.monotonic() - began < PATIENCE_S / 2
    assert isinstance(future.exception(0), ExecutionError)


def test_closing_while_an_executor_cannot_be_rebuilt(start, features: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.orchestrator.supervise._PAUSE_S", 600.0)
    orchestrator, engine, _ = start()
    engine.allocates, engine.fails = False, nth(1)
    with pytest.raises(ExecutionError):
        ask(orchestrator, features(1, 5)).result(60)
    waits = ask(orchestrator, features(2, 5))
    assert orchestrator.close(0.01) == 1
    with pytest.raises(ShuttingDown):
        waits.result(0)
    assert not orchestrator.running


@pytest.mark.parametrize("keep", [0, 6], ids=["forgetting", "keeping states"])
def test_every_request_ends_in_one_answer_whatever_happens(
    start, features: Make, expected: Expected, keep: int
) -> None:
    """Random faults, hangs that come back some time, cancelled and late requests, and a close in the middle of it."""
    orchestrator, engine, metrics = start((1, 4), executors=3, max_in_flight=60, keep_states=keep, launch_limit_ms=40)
    free = orchestrator._schedule.devices[0].reuse.pool.free()
    rng, lock = np.random.default_rng(keep), threading.Lock()

    def by_chance(share: float) -> Callable[..., bool]:
        def when(*_: object) -> bool:
            with lock:
                return rng.random() < share

        return when

    engine.fails, engine.refuses, engine.hangs = by_chance(0.02), by_chance(0.01), by_chance(0.01)
    requests = [features(seed % 7, size) for seed, size in enumerate(rng.integers(1, 200, 40).tolist())]
    scores = [expected(request) for request in requests]
    answers: list[Future[Scored]] = []
    done = threading.Event()

    def release() -> None:
        while not done.wait(0.06):
            engine.release()

    def client(number: int) -> str:
        gone = threading.Event()
        deadline = time.monotonic() + 0.005 if number % 9 == 0 else None
        try:
            future = ask(orchestrator, requests[number % 40], deadline=deadline, cancelled=gone)
        except (QueueFull, ShuttingDown) as error:
            return type(error).__name__
        answers.append(future)
        if number % 11 == 0:
            gone.set()
        error = future.exception(60)
        if error is None:
            np.testing.assert_array_equal(future.result().scores, scores[number % 40])
        assert error is None or isinstance(error, FlameError)
        return type(error).__name__

    releaser = threading.Thread(target=release)
    releaser.start()
    try:
        with ThreadPoolExecutor(24) as clients:
            outcomes = list(clients.map(client, range(1500)))
        assert {"NoneType", "ExecutionError", "InvalidLaunch"} <= set(outcomes)
        assert "EngineFailed" not in outcomes
        until(lambda: executors(metrics) == (3, 0, 0))
        assert counted(metrics, "launches_failed", reason="hang") > 0
        assert orchestrator._schedule.alive == orchestrator._schedule.waiting == 0
        assert sum(device.idle for device in orchestrator._schedule.devices) == 3
        assert orchestrator._schedule.devices[0].reuse.pool.free() == free
        with ThreadPoolExecutor(24) as clients:
            more = [clients.submit(client, number) for number in range(300)]
            until(lambda: len(answers) > 1520)
            orchestrator.close(0.02)
            assert {outcome.result() for outcome in more} >= {"ShuttingDown"}
    finally:
        done.set()
        releaser.join()
    assert all(answer.done() for answer in answers)
    assert orchestrator._schedule.alive == 0


def test_an_executor_is_freed_when_its_device_works_again(start, features: Make) -> None:
    """On a GPU, to free what lies in a spoiled context would end the process."""
    orchestrator, engine, metrics = start()
    engine.fails = lambda kind, buffers: True
    with pytest.raises(ExecutionError):
        ask(orchestrator, features(1, 5)).result(60)
    post = orchestrator._supervisor._posts[0]
    until(lambda: post.failures > 0)
    assert len(post.suspects) >= 2, "the one that failed, and the one that was to take its place"
    engine.heal()
    until(lambda: executors(metrics) == (1, 0, 0))
    assert not post.suspects


def test_an_executor_that_hung_and_then_failed_is_not_freed(start, features: Make) -> None:
    """A launch that does not end, and then reports that its context is spoiled."""
    orchestrator, engine, _ = start(launch_limit_ms=50)
    engine.hangs = nth(1)
    engine.fails = lambda kind, buffers: len(engine.log) > 1
    old = weakref.ref(orchestrator._supervisor._posts[0].executor)
    with pytest.raises(ExecutionError, match="longer than"):
        ask(orchestrator, features(1, 5)).result(60)
    orchestrator.failed.result(60)
    engine.inner.rank = broken  # type: ignore[method-assign]
    engine.release()
    until(lambda: orchestrator._supervisor._posts[0].hung == 0)
    gc.collect()
    assert old() is not None


def broken(buffers: LaunchBuffers, users: int) -> None:
    raise RuntimeError("an illegal memory access was encountered")


def test_a_rebuild_that_hangs_keeps_its_buffers_to_itself(start, features: Make, monkeypatch) -> None:
    monkeypatch.setattr("flame.orchestrator.supervise._REBUILD_S", 0.2)
    orchestrator, engine, metrics = start(launch_limit_ms=50)
    # Of the launches that do not fail, the first tries the executor that failed, and the second the new one.
    engine.fails, engine.hangs = nth(1), nth(2)
    with pytest.raises(ExecutionError):
        ask(orchestrator, features(1, 5)).result(60)
    ask(orchestrator, features(2, 5)).result(60)
    assert executors(metrics) == (1, 0, 0)
    engine.release()
    until(lambda: orchestrator._supervisor._posts[0].hung == 0)


def test_a_launch_that_was_given_up_is_booked(start, features: Make) -> None:
    orchestrator, engine, metrics = start(launch_limit_ms=30)
    engine.hangs = nth(1)
    with pytest.raises(ExecutionError):
        ask(orchestrator, features(1, 5)).result(60)
    (launch,) = orchestrator.timeline.snapshot().launches
    assert "longer than" in launch.error
    assert metrics.registry.get_sample_value("flame_launches_total", {"profile": "1x30+16", "kind": "rank"}) == 1
    engine.release()


def test_a_late_request_is_told_though_no_executor_asks_for_work(start, features: Make) -> None:
    orchestrator, engine, _ = start()
    engine.fails, engine.hangs = nth(1), nth(1)  # the launch, and the trial before the rebuild
    with pytest.raises(ExecutionError):
        ask(orchestrator, features(1, 5)).result(60)
    assert engine.hanging.acquire(timeout=PATIENCE_S)
    late = ask(orchestrator, features(2, 5), deadline=time.monotonic() + 0.02)
    with pytest.raises(DeadlineExceeded):
        late.result(60)
    engine.release()
