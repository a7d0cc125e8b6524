"""How the item rows of a request are found: with or without the cache, waiting or not.

    off     every row from the store
    sync    fresh rows from the cache; expired and missing ones from the store, waited for
    async   what the cache has, at once; expired and missing rows are refreshed in the background

In all three, a row that is not there in time leaves its slot missing (or stale, where the cache had an old one).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flame.features.cache import ItemCache, Offsets, Status
from flame.features.fetch import CachedFetcher, Fetcher
from flame.features.kernels.assemble import spread
from flame.features.kernels.codes import BACKING_OFF, EXPIRED, PENDING, ROW, UNKNOWN
from flame.features.refresh import Refresher
from flame.features.store.base import ABSENT, FOUND, UNANSWERED, Answers
from flame.layout import Words
from flame.records import Ids

_BITS = np.arange(256)
_OPEN = ((_BITS & (ROW | UNKNOWN)) == 0) | ((_BITS & EXPIRED) != 0)
"""By status: whether the cache does not have the current row."""
_FREE = _OPEN & ((_BITS & (PENDING | BACKING_OFF)) == 0)
"""By status: whether the row should be fetched and nobody does."""


class RowSource(Protocol):
    """Brings item rows into packed buffers; any number of threads may use it at once."""

    def fill(self, ids: Ids, words: Words, offsets: Offsets, status: Status, until: float) -> None:
        """Writes the row of `ids[i]` to `words[offsets[i]:]` and what is known of it to `status[i]` (zeroed before).

        Returns by `until`, a point of `time.monotonic()`. Does not raise for a store that fails.
        """

    def close(self) -> None:
        """Stops what runs in the background."""


class DirectRows:
    """No cache: one query per request."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def fill(self, ids: Ids, words: Words, offsets: Offsets, status: Status, until: float) -> None:
        """See `RowSource.fill`."""
        wanted, inverse = np.unique(ids, return_inverse=True)
        rows, answers, _ = self._fetcher.fetch(wanted, until)
        spread(rows, answers, inverse, np.arange(len(ids)), words, offsets, status)

    def close(self) -> None:
        """Nothing runs."""


class AsyncRows:
    """Never waits: the price of speed is a stale or a missing row now and then."""

    def __init__(self, cache: ItemCache, refresher: Refresher, lease_s: float) -> None:
        self._cache = cache
        self._refresher = refresher
        self._lease_s = lease_s

    def fill(self, ids: Ids, words: Words, offsets: Offsets, status: Status, until: float) -> None:
        """See `RowSource.fill`."""
        if not self._cache.lookup(ids, words, offsets, status):
            return
        free = ids[_FREE[status]]
        if len(free):
            self._refresher.submit(free[self._cache.claim(free, self._lease_s)])

    def close(self) -> None:
        """See `RowSource.close`."""
        self._refresher.close()


class SyncRows:
    """Waits for what is not fresh. Each id is fetched by one request; others that need it wait for that one."""

    def __init__(self, cache: ItemCache, fetcher: CachedFetcher, refresher: Refresher, lease_s: float) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._refresher = refresher
        self._lease_s = lease_s

    def fill(self, ids: Ids, words: Words, offsets: Offsets, status: Status, until: float) -> None:
        """See `RowSource.fill`."""
        if not self._cache.lookup(ids, words, offsets, status):
            return
        places = np.flatnonzero(_OPEN[status])
        wanted, inverse = np.unique(ids[places], return_inverse=True)
        rows, answers = np.zeros((len(wanted), self._cache.words), np.int32), np.zeros(len(wanted), np.uint8)
        self._get(wanted, rows, answers, until)
        spread(rows, answers, inverse, places, words, offsets, status)

    def close(self) -> None:
        """See `RowSource.close`."""
        self._refresher.close()

    def _get(self, wanted: Ids, rows: Words, answers: Answers, until: float) -> None:
        """Answers what can be answered of unique ids by `until`: fetches what nobody else does, waits for the rest."""
        waiting = np.arange(len(wanted))
        while True:
            version = self._fetcher.arrivals.version()
            mine = self._cache.claim(wanted[waiting], self._lease_s)
            if mine.any():
                self._fetch(wanted, waiting[mine], rows, answers, until)
            waiting, free = self._look_again(wanted, waiting[~mine], rows, answers)
            if not len(waiting) or not (free or self._fetcher.arrivals.wait(version, until)):
                return

    def _fetch(self, wanted: Ids, own: NDArray[np.int64], rows: Words, answers: Answers, until: float) -> None:
        """Fetches claimed ids; what does not come in time goes on in the background, for the next request."""
        rows[own], answers[own], failed = self._fetcher.fetch(wanted[own], until)
        if not failed:
            self._refresher.submit(wanted[own[answers[own] == UNANSWERED]])

    def _look_again(
        self, wanted: Ids, waiting: NDArray[np.int64], rows: Words, answers: Answers
    ) -> tuple[NDArray[np.int64], bool]:
        """Answers what others have brought by now; returns what may still come, and whether some of it is claimable."""
        status = np.zeros(len(waiting), np.uint8)
        if len(waiting):
            self._cache.lookup(wanted[waiting], rows.reshape(-1), waiting * self._cache.words, status)
        answers[waiting[status == ROW]] = FOUND
        answers[waiting[status == UNKNOWN]] = ABSENT
        coming = _OPEN[status] & ((status & BACKING_OFF) == 0)
        return waiting[coming], bool(_FREE[status].any())
