"""Threads for the part of a request that waits for the feature store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from flame.errors import ShuttingDown
from flame.orchestrator.core import use_cores, usual_cores

_log = logging.getLogger(__name__)

Task = Callable[[], None]


class Workers:
    """At most `limit` daemon threads, started as they are needed, that do tasks in the order in which they came.

    Unlike those of a `ThreadPoolExecutor`, they hold up neither `close` nor the end of the process when a task does
    not end, and no task is lost where the system gives no more threads. `on_start` runs first on every thread; where
    it fails, the thread works all the same. Tasks must not raise.
    """

    def __init__(self, limit: int, name: str, on_start: Callable[[], object]) -> None:
        self._limit = limit
        self._name = name
        self._on_start = on_start
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._free = 0
        self._closed = False
        self._lock = threading.Lock()
        self._cores = usual_cores()

    def submit(self, task: Task) -> None:
        """Has `task` done by a thread. Raises `ShuttingDown` after `close`; then the task is not done."""
        with self._lock:
            if self._closed:
                raise ShuttingDown("the server is shutting down and takes no new requests; use another one")
            if self._free:
                self._free -= 1
            elif len(self._threads) < self._limit:
                self._grow()
            self._tasks.put(task)

    def close(self, timeout: float) -> bool:
        """Takes nothing new, lets what was submitted be done for at most `timeout` seconds; whether all of it is."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._tasks.put(None)
        limit = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _grow(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise
            _log.warning("%d request threads and no more: %s", len(self._threads), error)
        else:
            self._threads.append(thread)

    def _serve(self) -> None:
        # Whoever submits starts threads, also one that is bound to the core of those who launch.
        use_cores(self._cores)
        try:
            self._on_start()
        except Exception:
            _log.exception("%s could not be set up and works as it is", threading.current_thread().name)
        while (task := self._tasks.get()) is not None:
            task()
            del task  # an idle thread keeps no request alive
            with self._lock:
                self._free += 1
