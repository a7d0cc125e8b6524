"""The item cache: item rows by id in flat memory, looked up a whole request at a time.

Any number of threads may call any method at once. Readers take no lock (see `kernels.cache_read`). Capacity is fixed;
what is not there any more was evicted, which callers must expect of every entry at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flame.features.kernels.cache_read import BLOCK, lookup
from flame.features.kernels.cache_write import claim, insert, set_lease
from flame.features.kernels.entries import CONTROL, WAYS, Entries
from flame.features.memory import allocate
from flame.features.store.base import Answers
from flame.layout import Words
from flame.records import Ids

Status = NDArray[np.uint8]
Offsets = NDArray[np.int64]

_HEADROOM = 5 / 4
"""Slots per row of capacity, so that a full cache is loaded to four fifths and sets hardly overflow."""


_TICKS = 1024
_MOST_TICKS_PER_SECOND = 1000.0


class ItemCache:
    """At least `capacity` rows of `words` int32 each; a row is fresh for `ttl` seconds after its insertion.

    `ttl` is kept to a thousandth, or to a millisecond if that is longer: below a millisecond nothing is ever fresh.
    `clock` returns seconds that never decrease; a test may give its own.
    """

    def __init__(self, capacity: int, words: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        assert capacity > 0
        assert words > 0
        sets = -(-int(capacity * _HEADROOM) // WAYS)
        self.words = words
        self._entries = Entries(
            keys=allocate((sets * WAYS,), np.int64, populate=True),
            control=allocate((sets * CONTROL,), np.int32, populate=True),
            leases=allocate((sets * WAYS,), np.float64, populate=True),
            rows=allocate((sets * WAYS, words), np.int32, populate=True),
        )
        self._clock = clock
        self._start = clock() - 1.0
        self._ticks_per_second = min(_TICKS / ttl, _MOST_TICKS_PER_SECOND)
        self._ttl_ticks = int(ttl * self._ticks_per_second)

    def lookup(self, ids: Ids, words: Words, offsets: Offsets, status: Status) -> int:
        """Writes the row of each of `ids` `[n]` to `words[offsets[i]:]` and what is known of it to `status` `[n]`.

        Returns the number of ids that are not fresh. An expired row is written too; where the status has no ROW, the
        place of the row may hold anything. `offsets` leave room for a row, which is not checked.
        """
        assert len(ids) == len(offsets) == len(status)
        now, tick = self._now()
        scratch = np.empty((BLOCK, 3), np.int64)
        return int(lookup(self._entries, ids, words, offsets, status, now, tick, scratch))

    def insert(self, ids: Ids, rows: Words, answers: Answers) -> None:
        """Puts in what a store answered: rows `[n, words]` of found ids, a note for absent ones; leases end."""
        assert rows.shape == (len(ids), self.words)
        _, tick = self._now()
        insert(self._entries, ids, rows, answers, tick + self._ttl_ticks)

    def claim(self, ids: Ids, lease: float) -> NDArray[np.bool_]:
        """Which of `ids` the caller shall fetch, `[n]`: those not fresh that no other thread fetches now.

        A claim ends with `insert`, `give_back`, `back_off`, eviction, or after `lease` seconds.
        """
        mine = np.zeros(len(ids), np.bool_)
        now, tick = self._now()
        claim(self._entries, ids, mine, now, now + lease, tick)
        return mine

    def give_back(self, ids: Ids) -> None:
        """Ends the claims on `ids` without a row: the next claim gets them."""
        set_lease(self._entries, ids, 0.0)

    def back_off(self, ids: Ids, seconds: float) -> None:
        """Ends the claims on `ids` after a failed fetch: nobody can claim them for `seconds`."""
        now, _ = self._now()
        set_lease(self._entries, ids, -(now + seconds))

    def _now(self) -> tuple[float, int]:
        """Seconds since a second before the cache was made, so always positive, and the same in ticks."""
        now = self._clock() - self._start
        return now, int(now * self._ticks_per_second)
