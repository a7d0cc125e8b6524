"""Threads that do tasks: none lost, none waited for in vain."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from flame.errors import ShuttingDown
from flame.orchestrator.workers import Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(4, "test-worker", lambda: None)
    yield made
    assert made.close(60)


def test_every_task_is_done_once(workers: Workers) -> None:
    done: list[int] = []
    for number in range(1000):
        workers.submit(lambda number=number: done.append(number))
    assert workers.close(60)
    assert sorted(done) == list(range(1000))


def test_as_many_tasks_as_threads_run_at_once(workers: Workers) -> None:
    together = threading.Barrier(5)
    for _ in range(4):
        workers.submit(lambda: together.wait(60))
    together.wait(60)


def test_a_thread_that_is_free_is_used_again(workers: Workers) -> None:
    names: set[str] = set()
    for _ in range(20):
        done = threading.Event()
        workers.submit(lambda done=done: (names.add(threading.current_thread().name), done.set()))
        assert done.wait(60)
        while not workers._free:  # the thread is free a moment after its task
            pass
    assert names == {"test-worker-0"}


def test_an_idle_thread_keeps_nothing_alive(workers: Workers) -> None:
    class Request:
        def __call__(self) -> None:
            pass

    task = Request()
    kept = weakref.ref(task)
    workers.submit(task)
    del task
    until = time.monotonic() + 60
    while kept() is not None:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_task_is_not_lost_where_the_system_gives_no_more_threads(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, done = threading.Event(), threading.Semaphore(0)
    workers.submit(lambda: (go.wait(60), done.release()))

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        workers.submit(done.release)
    go.set()
    assert done.acquire(timeout=60)
    assert done.acquire(timeout=60)


def test_a_thread_whose_set_up_fails_works_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("no such core")

    workers, done = Workers(1, "test-worker", fail), threading.Event()
    workers.submit(done.set)
    assert done.wait(60)
    assert workers.close(60)
    assert "no such core" in caplog.text


def test_closing_waits_for_what_was_submitted_but_not_for_ever(workers: Workers) -> None:
    go, done = threading.Event(), threading.Event()
    for _ in range(4):
        workers.submit(lambda: go.wait(60))
    workers.submit(done.set)
    assert not workers.close(0.01)
    assert not done.is_set()
    with pytest.raises(ShuttingDown):
        workers.submit(done.set)
    go.set()
    assert done.wait(60)
