"""Requests with the same history: encoded once, shared, and never half-written or another's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from flame.errors import DeadlineExceeded, ExecutionError, FlameError, RequestCancelled
from flame.layout import SCENARIO
from flame.metrics import Metrics
from flame.orchestrator.pool import Orchestrator
from flame.records import Features
from tests.faulty_engine import until
from tests.orchestrator.asking import ask

Make = Callable[..., Features]
Expected = Callable[[Features], NDArray[np.float32]]


def counts(metrics: Metrics) -> dict[str, float | None]:
    names = {"hits": "state_hits_total", "misses": "state_misses_total", "evictions": "state_evictions_total"}
    names |= {"held": "states_held", "bytes": "state_bytes"}
    return {name: metrics.registry.get_sample_value(f"flame_{sample}") for name, sample in names.items()}


def kinds(engine) -> list[str]:
    return [kind for kind, _ in engine.log]


def test_a_second_request_with_the_same_history_is_only_scored(start, page: Make, expected: Expected) -> None:
    orchestrator, engine, metrics = start(keep_states=4)
    asked = [page(1, seed, size) for seed, size in enumerate([5, 200, 64])]
    scored = [ask(orchestrator, request).result(60) for request in asked]
    for request, one in zip(asked, scored, strict=True):
        np.testing.assert_array_equal(one.scores, expected(request))
    assert [one.reused for one in scored] == [False, True, True]
    assert kinds(engine) == ["encode"] + ["score"] * 6
    assert counts(metrics) == {"hits": 2, "misses": 1, "evictions": 0, "held": 1, "bytes": 8}


def test_other_histories_and_other_scenarios_are_not_reused(start, page: Make, expected: Expected) -> None:
    orchestrator, _, _ = start(keep_states=4)
    other = page(1, 3)
    view = other.layout.views(other.words)
    view.header[0, SCENARIO] = (view.header[0, SCENARIO] + 1) % 4
    other = replace(other, fingerprint=b"the same events in another scenario")
    for request in (page(1, 1), page(2, 2), other):
        scored = ask(orchestrator, request).result(60)
        np.testing.assert_array_equal(scored.scores, expected(request))
        assert not scored.reused


@pytest.mark.parametrize("settings", [{"keep_states": 0}, {"keep_states": 4, "policy": "largest-first"}])
def test_reuse_can_be_off(start, page: Make, settings: dict[str, object]) -> None:
    orchestrator, _, metrics = start(**settings)
    assert not any(ask(orchestrator, page(1, seed, 200)).result(60).reused for seed in range(3))
    assert counts(metrics) == {"hits": 0, "misses": 0, "evictions": 0, "held": 0, "bytes": 0}


def test_what_was_used_longest_ago_makes_room(start, page: Make, expected: Expected) -> None:
    orchestrator, _, metrics = start(keep_states=2)
    reused = []
    for seed, history in enumerate([1, 2, 1, 3, 1, 2]):
        request = page(history, seed, 100)
        scored = ask(orchestrator, request).result(60)
        np.testing.assert_array_equal(scored.scores, expected(request))
        reused.append(scored.reused)
    assert reused == [False, False, True, False, True, False]
    assert counts(metrics) == {"hits": 2, "misses": 4, "evictions": 2, "held": 2, "bytes": 16}


def test_a_request_waits_for_the_encode_of_another_and_never_reads_it_half_written(
    start, page: Make, expected: Expected
) -> None:
    orchestrator, engine, metrics = start(executors=3, keep_states=4)
    engine.gate.clear()
    engine.gated = {"encode"}
    asked = [page(1, seed, 200) for seed in range(4)]
    futures = [ask(orchestrator, asked[0])]
    assert engine.entered.acquire(timeout=60)
    futures += [ask(orchestrator, request) for request in asked[1:]]
    other = page(2, 9)
    engine.gated = set()
    np.testing.assert_array_equal(ask(orchestrator, other).result(60).scores, expected(other))
    until(lambda: counts(metrics)["hits"] == 3)
    assert kinds(engine).count("encode") == 2
    assert not any(future.done() for future in futures)
    engine.gate.set()
    for request, future in zip(asked, futures, strict=True):
        np.testing.assert_array_equal(future.result(60).scores, expected(request))
    assert [future.result().reused for future in futures] == [False, True, True, True]
    assert kinds(engine).count("encode") == 2


def test_of_twins_in_the_queue_one_is_encoded_and_all_are_scored(start, page: Make, expected: Expected) -> None:
    orchestrator, engine, _ = start((1, 4), keep_states=4)
    engine.gate.clear()
    running = ask(orchestrator, page(7, 0))
    assert engine.entered.acquire(timeout=60)
    asked = [page(seed % 2, seed) for seed in range(8)]
    futures = [ask(orchestrator, request) for request in asked]
    engine.gate.set()
    for request, future in zip(asked, futures, strict=True):
        np.testing.assert_array_equal(future.result(60).scores, expected(request))
    running.result(60)
    assert [future.result().reused for future in futures] == [False, False] + [True] * 6


def test_who_waited_for_an_encode_that_fails_encodes_itself(start, page: Make, expected: Expected) -> None:
    orchestrator, engine, metrics = start(executors=2, keep_states=4)
    engine.gate.clear()
    engine.gated = {"encode"}
    failures = iter([True])
    engine.fails = lambda kind, buffers: kind == "encode" and next(failures, False)
    asked = [page(1, seed, 100) for seed in range(4)]
    futures = [ask(orchestrator, asked[0])]
    assert engine.entered.acquire(timeout=60)
    futures += [ask(orchestrator, request) for request in asked[1:]]
    until(lambda: counts(metrics)["hits"] == 3)
    engine.gate.set()
    with pytest.raises(ExecutionError, match="encode"):
        futures[0].result(60)
    for request, future in zip(asked[1:], futures[1:], strict=True):
        np.testing.assert_array_equal(future.result(60).scores, expected(request))
    again = page(1, 9, 100)
    scored = ask(orchestrator, again).result(60)
    np.testing.assert_array_equal(scored.scores, expected(again))
    assert scored.reused, "an encode that went well is kept after one that failed"


def test_an_encode_that_fails_leaves_nothing_to_find(start, page: Make) -> None:
    orchestrator, engine, metrics = start(keep_states=4)
    engine.fails = lambda kind, buffers: kind == "encode"
    for seed in range(5):
        with pytest.raises(ExecutionError):
            ask(orchestrator, page(1, seed, 100)).result(60)
    assert counts(metrics) == {"hits": 0, "misses": 5, "evictions": 0, "held": 0, "bytes": 0}


def test_a_state_that_was_read_by_a_launch_that_failed_is_not_used_again(start, page: Make, expected: Expected) -> None:
    orchestrator, engine, metrics = start(keep_states=4)
    ask(orchestrator, page(1, 0)).result(60)
    assert counts(metrics)["held"] == 1
    engine.fails = lambda kind, buffers: kind == "score"
    with pytest.raises(ExecutionError):
        ask(orchestrator, page(1, 1)).result(60)
    assert counts(metrics)["held"] == 0
    engine.fails = lambda kind, buffers: False
    request = page(1, 2)
    scored = ask(orchestrator, request).result(60)
    np.testing.assert_array_equal(scored.scores, expected(request))
    assert not scored.reused


@pytest.mark.parametrize("late", [False, True], ids=["cancelled", "past its deadline"])
def test_giving_up_while_waiting_for_an_encode_disturbs_nobody(
    start, page: Make, expected: Expected, late: bool
) -> None:
    orchestrator, engine, metrics = start(keep_states=4)
    engine.gate.clear()
    asked = [page(1, seed, 100) for seed in range(3)]
    futures, gone = [ask(orchestrator, asked[0])], threading.Event()
    assert engine.entered.acquire(timeout=60)
    deadline = time.monotonic() + 0.02 if late else None
    futures.append(ask(orchestrator, asked[1], cancelled=gone, deadline=deadline))
    futures.append(ask(orchestrator, asked[2]))
    time.sleep(0.03)
    if not late:
        gone.set()
    engine.gate.set()
    assert isinstance(futures[1].exception(60), DeadlineExceeded if late else RequestCancelled)
    for place in (0, 2):
        np.testing.assert_array_equal(futures[place].result(60).scores, expected(asked[place]))
    assert futures[2].result().reused
    assert counts(metrics)["held"] == 1


def test_a_client_that_goes_while_its_history_is_encoded_leaves_it_to_those_who_wait(
    start, page: Make, expected: Expected
) -> None:
    orchestrator, engine, metrics = start(executors=2, keep_states=4)
    engine.gate.clear()
    gone = threading.Event()
    first = ask(orchestrator, page(1, 0, 100), cancelled=gone)
    assert engine.entered.acquire(timeout=60)
    request = page(1, 1, 100)
    second = ask(orchestrator, request)
    until(lambda: counts(metrics)["hits"] == 1)
    gone.set()
    engine.gate.set()
    assert isinstance(first.exception(60), RequestCancelled)
    np.testing.assert_array_equal(second.result(60).scores, expected(request))
    assert second.result().reused
    assert kinds(engine).count("encode") == 1


def test_closing_drops_every_state(start, page: Make) -> None:
    orchestrator, _, metrics = start(keep_states=4)
    for history in range(3):
        ask(orchestrator, page(history, history, 100)).result(60)
    assert counts(metrics)["held"] == 3
    orchestrator.close()
    assert (counts(metrics)["held"], counts(metrics)["bytes"]) == (0, 0)


def test_many_clients_few_histories_few_states_and_every_kind_of_trouble(start, page: Make, expected: Expected) -> None:
    orchestrator, engine, metrics = start((1, 4), executors=3, max_in_flight=500, keep_states=3, histories=(30,))
    free = orchestrator._schedule.devices[0].reuse.pool.free()
    rng = np.random.default_rng(3)
    engine.fails = lambda kind, buffers: rng.random() < 0.02
    asked = [
        page(int(history), seed, int(size))
        for seed, (history, size) in enumerate(rng.integers(1, 7, (60, 2)) * (1, 30))
    ]

    def client(number: int) -> str:
        request, gone = asked[number % 60], threading.Event()
        future = ask(
            orchestrator, request, cancelled=gone, deadline=time.monotonic() + 0.002 if number % 17 == 0 else None
        )
        if number % 13 == 0:
            gone.set()
        error = future.exception(60)
        if error is None:
            np.testing.assert_array_equal(future.result().scores, expected(request))
            return "reused" if future.result().reused else "encoded or ranked"
        assert isinstance(error, FlameError)
        return type(error).__name__

    with ThreadPoolExecutor(12) as clients:
        outcomes = list(clients.map(client, range(1200)))
    assert {"reused", "encoded or ranked", "ExecutionError"} <= set(outcomes)
    assert orchestrator._schedule.alive == orchestrator._schedule.waiting == 0
    assert orchestrator._schedule.devices[0].reuse.pool.free() == free
    assert counts(metrics)["held"] <= 3
    assert not orchestrator._schedule.devices[0].reuse._filling


def test_a_pool_of_its_own_for_every_orchestrator(start, page: Make) -> None:
    """Another engine, another model version: nothing of the old one is found."""
    for _ in range(2):
        orchestrator, _, _ = start(keep_states=4)
        assert isinstance(orchestrator, Orchestrator)
        assert not ask(orchestrator, page(1, 1, 100)).result(60).reused
