"""Threads that hand Python's lock to each other share a core, where there is one to spare."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

from flame.errors import ExecutionError
from flame.orchestrator import core
from flame.orchestrator.core import bind_thread, bound, shared_core
from flame.orchestrator.workers import Workers
from tests.faulty_engine import nth, until
from tests.orchestrator.asking import ask
from tests.orchestrator.conftest import HashEngine

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no threads")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    shared_core.cache_clear()
    yield
    shared_core.cache_clear()


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which cores the process may use, and how busy all of the machine are."""

    def say(allowed: set[int], busy: list[float]) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda thread: allowed, raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: None, raising=False)
        monkeypatch.setattr(core.psutil, "cpu_percent", lambda pause, percpu: busy)

    return say


def test_it_is_the_idlest_that_the_process_may_use(cores: Callable[..., None]) -> None:
    cores({1, 2, 3, 5}, [0.0, 90.0, 7.0, 50.0, 0.0, 8.0])
    assert shared_core() == 2


def test_it_stays_the_same_however_busy_it_becomes(cores: Callable[..., None]) -> None:
    cores({0, 1, 2, 3}, [9.0, 9.0, 1.0, 9.0])
    assert shared_core() == 2
    cores({0, 1, 2, 3}, [1.0, 1.0, 100.0, 1.0])
    assert shared_core() == 2


def test_processes_that_start_on_an_idle_machine_do_not_all_choose_the_same(cores: Callable[..., None]) -> None:
    cores(set(range(16)), [0.0] * 16)
    chosen = set()
    for _ in range(64):
        shared_core.cache_clear()
        chosen.add(shared_core())
    assert len(chosen) > 1
    assert chosen <= set(range(16))


def test_cores_that_nobody_reports_are_taken_to_be_idle(cores: Callable[..., None]) -> None:
    cores({0, 1, 2, 9}, [3.0, 3.0, 3.0])
    assert shared_core() == 9


def test_a_process_with_few_cores_keeps_them(cores: Callable[..., None]) -> None:
    cores({0, 1, 2}, [0.0, 0.0, 0.0])
    assert shared_core() is None


def test_no_core_is_no_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    monkeypatch.setattr(core, "_keep_on", kept.append)
    bind_thread(None)
    assert kept == []
    bind_thread(3)
    assert kept == [{3}]


@needs_affinity
def test_only_the_thread_that_asks_is_bound() -> None:
    found: list[set[int]] = []
    own = min(os.sched_getaffinity(0))

    def run() -> None:
        bind_thread(own)
        found.append(os.sched_getaffinity(0))

    before = os.sched_getaffinity(0)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [{own}]
    assert os.sched_getaffinity(0) == before


@needs_affinity
def test_a_core_that_is_not_to_be_had_is_told_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    before = os.sched_getaffinity(0)
    with caplog.at_level(logging.WARNING):
        bind_thread(4095)
    assert "cores [4095]" in caplog.text
    assert os.sched_getaffinity(0) == before


@needs_affinity
def test_a_thread_is_bound_for_a_while_and_those_it_starts_meanwhile_are_not() -> None:
    """The request threads of a ranker may be started by one that launches."""
    before = os.sched_getaffinity(0)
    workers = Workers(1, "request", lambda: None)
    found: SimpleQueue[set[int]] = SimpleQueue()
    with bound(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
        workers.submit(lambda: found.put(os.sched_getaffinity(0)))
        assert found.get(timeout=10) == before
    assert os.sched_getaffinity(0) == before
    workers.close(1.0)


class Places:
    """Who is bound to core 7, told apart by thread, in place of the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bound: set[int] = set()
        monkeypatch.setattr(core, "shared_core", lambda: 7)
        monkeypatch.setattr(core, "_keep_on", self._keep_on)

    def _keep_on(self, cores: set[int]) -> None:
        own = {threading.get_ident()}
        self.bound = self.bound | own if set(cores) == {7} else self.bound - own


@pytest.mark.parametrize(
    ("gathers", "settings", "bound"),
    [
        (True, {"executors": 2}, 3),
        (True, {"executors": 2, "one_core": False}, 0),
        (True, {"executors": 1}, 0),
        (False, {"executors": 2}, 0),
    ],
    ids=["shared", "switched off", "nobody to share with", "requests are copied"],
)
def test_threads_that_launch_are_bound_where_they_hardly_do_more(
    monkeypatch: pytest.MonkeyPatch, start, features, expected, gathers: bool, settings: dict[str, int], bound: int
) -> None:
    """Two executors and the thread of a caller that asks for it, and no other caller."""
    places = Places(monkeypatch)
    monkeypatch.setattr(HashEngine, "gathers", gathers)
    orchestrator, _, _ = start(**settings)
    one = features(1, 40)
    assert (ask(orchestrator, one).result(20).scores == expected(one)).all()
    until(lambda: len(places.bound) == max(0, bound - 1))
    assert threading.get_ident() not in places.bound
    orchestrator.bind_thread()
    assert len(places.bound) == bound


def test_an_executor_is_rebuilt_on_any_core(monkeypatch: pytest.MonkeyPatch, start, features, expected) -> None:
    """That takes long, and others launch meanwhile."""
    places = Places(monkeypatch)
    monkeypatch.setattr(HashEngine, "gathers", True)
    orchestrator, engine, _ = start(executors=2)
    until(lambda: len(places.bound) == 2)
    building: list[bool] = []
    inner = engine.buffers

    def buffers(profile):
        building.append(threading.get_ident() in places.bound)
        return inner(profile)

    monkeypatch.setattr(engine, "buffers", buffers)
    engine.fails = nth(1)
    with pytest.raises(ExecutionError):
        ask(orchestrator, features(1, 9)).result(20)
    until(lambda: len(building) == len(engine.profiles) and len(places.bound) == 2)
    assert not any(building)
    one = features(2, 9)
    assert (ask(orchestrator, one).result(20).scores == expected(one)).all()
