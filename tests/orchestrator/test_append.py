"""Histories that have grown: only their new part is encoded, and never behind another's events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from flame.config import OrchestratorConfig
from flame.errors import ExecutionError, FlameError
from flame.metrics import Metrics
from flame.orchestrator.pool import Orchestrator
from flame.records import Features
from tests.orchestrator.appending import CAPACITY, SPEC, AppendEngine, asked, expected, profiles_of
from tests.orchestrator.asking import ask
from tests.orchestrator.conftest import costs

Start = Callable[..., tuple[Orchestrator, AppendEngine, Metrics]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts an orchestrator on an `AppendEngine`; all are closed at the end of the test, gates opened."""
    started: list[tuple[Orchestrator, AppendEngine]] = []

    def make(users: tuple[int, ...] = (1,), **settings: Any) -> tuple[Orchestrator, AppendEngine, Metrics]:
        profiles = profiles_of(users)
        engine, metrics = AppendEngine(SPEC, profiles, costs(profiles)), Metrics()
        orchestrator = Orchestrator(engine, OrchestratorConfig(**{"keep_states": 4} | settings), metrics)
        started.append((orchestrator, engine))
        return orchestrator, engine, metrics

    yield make
    for orchestrator, engine in started:
        engine.gate.set()
        orchestrator.close()
        assert not orchestrator.running


def serve(orchestrator: Orchestrator, *requests: Features) -> None:
    """One after the other; each gets its scores."""
    for request in requests:
        np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))


def value(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(f"flame_{name}")


def test_a_history_that_grew_encodes_its_new_part(start: Start) -> None:
    orchestrator, engine, metrics = start()
    serve(orchestrator, asked(1, 10), asked(1, 11), asked(1, 17), asked(1, 17, seed=1))
    assert engine.appended == [(0, 10), (8, 11), (8, 17)]
    names = ("state_appends_total", "state_misses_total", "state_hits_total", "state_evictions_total", "states_held")
    assert [value(metrics, name) for name in names] == [2, 3, 1, 0, 1]


def test_an_older_page_of_a_history_is_made_of_a_newer_one(start: Start) -> None:
    orchestrator, engine, _ = start()
    serve(orchestrator, asked(1, 17), asked(1, 9), asked(1, 8), asked(1, 17))
    assert engine.appended == [(0, 17), (8, 9), (8, 8), (8, 17)]


def test_short_histories_and_other_users_are_encoded_whole(start: Start) -> None:
    orchestrator, engine, metrics = start()
    serve(orchestrator, asked(1, 3), asked(1, 4), asked(2, 12), asked(3, 12), asked(4, 0))
    assert [prefix for prefix, _ in engine.appended] == [0] * 5
    assert value(metrics, "state_appends_total") == 0


def test_a_history_that_slides_is_no_longer_the_same(start: Start) -> None:
    orchestrator, engine, _ = start()
    serve(orchestrator, asked(1, CAPACITY - 1), asked(1, CAPACITY), asked(1, CAPACITY + 1), asked(1, CAPACITY + 9))
    assert engine.appended == [(0, 29), (28, 30), (0, 30), (0, 30)]


def test_what_comes_behind_a_changed_event_is_encoded_again(start: Start) -> None:
    orchestrator, engine, _ = start()
    serve(orchestrator, asked(1, 20), asked(1, 22, changed=13), asked(1, 22, changed=2), asked(1, 23, changed=13))
    assert engine.appended == [(0, 20), (12, 22), (0, 22), (20, 23)]


@pytest.mark.parametrize("settings", [{"keep_states": 0}, {"policy": "largest-first"}])
def test_nothing_is_appended_where_nothing_is_kept(start: Start, settings: dict[str, object]) -> None:
    orchestrator, engine, metrics = start(**settings)
    serve(orchestrator, asked(1, 10), asked(1, 14), asked(1, 18))
    assert all(prefix == 0 for prefix, _ in engine.appended)
    assert value(metrics, "state_appends_total") == 0


def test_a_state_that_made_room_is_not_appended_to(start: Start) -> None:
    orchestrator, engine, metrics = start(keep_states=1)
    serve(orchestrator, asked(1, 10), asked(2, 10), asked(1, 14), asked(1, 15))
    assert engine.appended == [(0, 10), (0, 10), (0, 14), (12, 15)]
    assert value(metrics, "states_held") == 1


def test_a_state_that_is_read_is_not_appended_to(start: Start) -> None:
    orchestrator, engine, _ = start(executors=2)
    serve(orchestrator, asked(1, 10))
    engine.gate.clear()
    engine.gated = {"score"}
    while engine.entered.acquire(blocking=False):
        pass
    reader = asked(1, 10, 5, seed=1)
    reading = ask(orchestrator, reader)
    assert engine.entered.acquire(timeout=60)
    growing = asked(1, 14)
    grown = ask(orchestrator, growing)
    assert engine.entered.acquire(timeout=60)
    assert engine.appended == [(0, 10), (0, 14)]
    engine.gate.set()
    np.testing.assert_array_equal(reading.result(60).scores, expected(reader))
    np.testing.assert_array_equal(grown.result(60).scores, expected(growing))


def test_of_two_that_grew_from_the_same_one_takes_the_state(start: Start) -> None:
    orchestrator, engine, _ = start((1, 4))
    serve(orchestrator, asked(1, 10))
    engine.gate.clear()
    while engine.entered.acquire(blocking=False):
        pass
    blocker = ask(orchestrator, asked(9, 5))
    assert engine.entered.acquire(timeout=60)
    requests = [asked(1, 14), asked(1, 14, changed=12), asked(1, 18), asked(1, 14, seed=1)]
    futures = [ask(orchestrator, request) for request in requests]
    engine.gate.set()
    for request, future in zip(requests, futures, strict=True):
        np.testing.assert_array_equal(future.result(60).scores, expected(request))
    blocker.result(60)
    assert sorted(engine.appended[2:]) == [(0, 14), (0, 18), (8, 14)]
    assert [future.result().reused for future in futures] == [False, False, False, True]


def test_an_append_that_fails_leaves_nothing_half_done(start: Start) -> None:
    orchestrator, engine, metrics = start()
    serve(orchestrator, asked(1, 10))
    engine.fails = lambda kind, buffers: kind == "encode"
    with pytest.raises(ExecutionError):
        ask(orchestrator, asked(1, 14)).result(60)
    assert (value(metrics, "states_held"), value(metrics, "state_appends_total")) == (0, 0)
    engine.fails = lambda kind, buffers: False
    serve(orchestrator, asked(1, 14), asked(1, 10))
    assert engine.appended == [(0, 10), (8, 14), (0, 14), (8, 10)]


def test_who_waited_for_an_append_that_fails_encodes_the_whole(start: Start) -> None:
    orchestrator, engine, metrics = start(executors=2)
    serve(orchestrator, asked(1, 10))
    engine.gate.clear()
    engine.gated = {"encode"}
    failures = iter([True])
    engine.fails = lambda kind, buffers: kind == "encode" and next(failures, False)
    while engine.entered.acquire(blocking=False):
        pass
    first = ask(orchestrator, asked(1, 14))
    assert engine.entered.acquire(timeout=60)
    waiting = asked(1, 14, seed=1)
    second = ask(orchestrator, waiting)
    limit = time.monotonic() + 60
    while value(metrics, "state_hits_total") != 1:
        assert time.monotonic() < limit
        time.sleep(0.001)
    engine.gate.set()
    with pytest.raises(ExecutionError):
        first.result(60)
    np.testing.assert_array_equal(second.result(60).scores, expected(waiting))
    assert engine.appended == [(0, 10), (8, 14), (0, 14)]


def test_many_users_whose_histories_grow_and_every_kind_of_trouble(start: Start) -> None:
    orchestrator, engine, metrics = start((1, 4), executors=3, max_in_flight=500, keep_states=5)
    reuse = orchestrator._schedule.devices[0].reuse
    free = reuse.pool.free()
    rng = np.random.default_rng(3)
    engine.fails = lambda kind, buffers: rng.random() < 0.02
    requests = [
        asked(number % 7, 5 + number // 12, int(size), seed=number, changed=9 if number % 29 == 0 else None)
        for number, size in enumerate(rng.integers(1, 180, 600))
    ]

    def client(number: int) -> str:
        request, gone = requests[number], threading.Event()
        late = time.monotonic() + 0.002 if number % 17 == 0 else None
        future = ask(orchestrator, request, cancelled=gone, deadline=late)
        if number % 13 == 0:
            gone.set()
        error = future.exception(60)
        if error is None:
            np.testing.assert_array_equal(future.result().scores, expected(request))
            return "right"
        assert isinstance(error, FlameError)
        return type(error).__name__

    with ThreadPoolExecutor(8) as clients:
        outcomes = list(clients.map(client, range(len(requests))))
    assert {"right", "ExecutionError"} <= set(outcomes)
    appends = value(metrics, "state_appends_total")
    assert appends is not None
    assert appends > 20
    assert orchestrator._schedule.alive == orchestrator._schedule.waiting == 0
    assert reuse.pool.free() == free
    assert not reuse._filling
    orchestrator.close()
    assert all(not index._states for index in reuse.pool._starts.values())
