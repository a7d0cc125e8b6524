"""Threads that take turns in the interpreter share a core, where there is one to spare."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from flame.orchestrator import core
from flame.orchestrator.core import bind_thread, shared_core
from tests.faulty_engine import until
from tests.orchestrator.asking import ask

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
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("nothing was to be bound"), raising=False)
    bind_thread(None)


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
    assert "core 4095" in caplog.text
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(("device", "one_core", "bound"), [("cuda:0", True, 3), ("cuda:0", False, 0), ("cpu", True, 0)])
def test_threads_that_launch_on_gpus_are_bound(
    monkeypatch: pytest.MonkeyPatch, start, features, expected, device: str, one_core: bool, bound: int
) -> None:
    """Two executors and the thread of a caller that asks for it, and no other caller."""
    from flame.orchestrator import pool
    from tests.orchestrator import conftest

    threads: list[int] = []

    def bind(core: int | None) -> None:
        if core is not None:
            assert core == 7
            threads.append(threading.get_ident())

    monkeypatch.setattr(pool, "shared_core", lambda: 7)
    monkeypatch.setattr(pool, "bind_thread", bind)
    monkeypatch.setattr(conftest.HashEngine, "device", device)
    orchestrator, _, _ = start(executors=2, one_core=one_core)
    one = features(1, 40)
    assert (np.asarray(ask(orchestrator, one).result(20).scores) == expected(one)).all()
    orchestrator.bind_thread()
    until(lambda: len(threads) == bound)
    assert len(set(threads)) == bound
    assert (threading.get_ident() in threads) == bool(bound)
