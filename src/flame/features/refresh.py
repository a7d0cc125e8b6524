"""Background refresh: ids that a request claimed and did not wait for are fetched by threads of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from flame.features.cache import ItemCache
from flame.features.fetch import CachedFetcher
from flame.features.store.base import UNANSWERED
from flame.metrics import Metrics
from flame.records import Ids

_log = logging.getLogger(__name__)

_QUEUE_IDS = 65_536
_BATCH_IDS = 4_096
_JOIN_S = 2.0


class Refresher:
    """A bounded queue of claimed ids and the threads that empty it, started at once.

    `on_start` runs first on every thread. A fetch may take `lease_s`: after that, claims are free again anyway.
    """

    def __init__(
        self,
        fetcher: CachedFetcher,
        cache: ItemCache,
        metrics: Metrics,
        *,
        threads: int,
        lease_s: float,
        on_start: Callable[[], object] = lambda: None,
        queue_ids: int = _QUEUE_IDS,
    ) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self._dropped = metrics.refresh_dropped
        self._lease_s = lease_s
        self._on_start = on_start
        self._queue_ids = queue_ids
        self._queue: deque[Ids] = deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"flame-refresh-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, ids: Ids) -> None:
        """Queues claimed ids and returns at once. Where the queue is full their claims end, and they are counted."""
        if not len(ids):
            return
        with self._changed:
            accepted = not self._closed and self._queued + len(ids) <= self._queue_ids
            if accepted:
                self._queue.append(ids)
                self._queued += len(ids)
                self._changed.notify()
        if not accepted:
            self._cache.give_back(ids)
            self._fetcher.arrivals.announce()
            self._dropped.inc(len(ids))

    def close(self) -> None:
        """Stops the threads; what is queued is not fetched. Waits a short while for fetches under way."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                _log.warning("%s is still in the feature store and is left behind", thread.name)

    def _run(self) -> None:
        self._on_start()
        while True:
            ids = self._next()
            if ids is None:
                return
            try:
                _, answers, failed = self._fetcher.fetch(ids, time.monotonic() + self._lease_s)
            except Exception:
                _log.exception("refreshing %d item rows failed", len(ids))
                continue
            if not failed and (late := ids[answers == UNANSWERED]).size:
                self._fetcher.give_up(late)

    def _next(self) -> Ids | None:
        """The ids of the next fetch, from as many submissions as fit; None when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            taken = [self._queue.popleft()]
            while self._queue and sum(map(len, taken)) + len(self._queue[0]) <= _BATCH_IDS:
                taken.append(self._queue.popleft())
            self._queued -= sum(map(len, taken))
        return np.unique(np.concatenate(taken))
