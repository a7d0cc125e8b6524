"""One fetch of item rows: from the store into the cache, with its failures counted and its claims ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import numpy as np

from flame.errors import StoreUnavailable
from flame.features.cache import ItemCache
from flame.features.store.base import UNANSWERED, Answers, FeatureStore
from flame.layout import Words
from flame.metrics import Metrics
from flame.records import Ids

_log = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0


class Arrivals:
    """Wakes the threads that wait for rows which another thread fetches."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._version = 0

    def version(self) -> int:
        """A number that grows with every `announce`; read it before looking for what may arrive."""
        return self._version

    def announce(self) -> None:
        """Something arrived, or will not arrive any more."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def wait(self, version: int, until: float) -> bool:
        """Waits for an announcement after `version` was read, at most until `until` (`time.monotonic()`)."""
        with self._changed:
            return self._changed.wait_for(lambda: self._version != version, max(0.0, until - time.monotonic()))


class FailureLog:
    """Counts failed fetches and logs them, at most one line in ten seconds."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._since = 0
        self._logged = -_LOG_EVERY_S

    def add(self, error: BaseException) -> None:
        """One fetch failed."""
        self._metrics.store_errors.inc()
        with self._lock:
            self._since += 1
            now = self._clock()
            if now - self._logged < _LOG_EVERY_S:
                return
            count, self._since, self._logged = self._since, 0, now
        _log.warning("the feature store failed, %d times since the last line: %s", count, error)


class Fetcher:
    """Reads the store on the calling thread; any number of threads may."""

    def __init__(self, store: FeatureStore, words: int, metrics: Metrics, failures: FailureLog) -> None:
        self.words = words
        self._store = store
        self._metrics = metrics
        self._failures = failures

    def fetch(self, ids: Ids, until: float) -> tuple[Words, Answers, bool]:
        """Rows and answers of unique `ids` as far as they came by `until`, and whether the store failed.

        A failure is counted and logged here; what was answered before it holds.
        """
        rows, answers = np.zeros((len(ids), self.words), np.int32), np.zeros(len(ids), np.uint8)
        began, failed = time.monotonic(), False
        try:
            self._store.items(ids, rows, answers, until)
        except StoreUnavailable as error:
            self._failures.add(error)
            failed = True
        finally:
            self._metrics.store.observe(time.monotonic() - began)
        return rows, answers, failed


class CachedFetcher:
    """Fetches ids that the caller has claimed in `cache`, and ends every claim that the store settled."""

    def __init__(self, fetcher: Fetcher, cache: ItemCache, back_off_s: float) -> None:
        self.arrivals = Arrivals()
        self._fetcher = fetcher
        self._cache = cache
        self._back_off_s = back_off_s

    def fetch(self, ids: Ids, until: float) -> tuple[Words, Answers, bool]:
        """As `Fetcher.fetch`; answers go into the cache. After a failure nobody fetches the rest for a while.

        Ids left unanswered by a store that did not fail are still claimed: the caller passes them on or gives up.
        """
        try:
            rows, answers, failed = self._fetcher.fetch(ids, until)
        except BaseException:
            self.give_up(ids)
            raise
        self._cache.insert(ids, rows, answers)
        if failed:
            self._cache.back_off(ids[answers == UNANSWERED], self._back_off_s)
        self.arrivals.announce()
        return rows, answers, failed

    def give_up(self, ids: Ids) -> None:
        """Ends the claims on ids that did not come; the next try is after the back-off."""
        self._cache.back_off(ids, self._back_off_s)
        self.arrivals.announce()
