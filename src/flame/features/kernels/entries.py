"""The entries of the item cache: how they lie in memory, and the steps that reading and writing share.

Entries live in sets of 8. An id may stand in either of two sets that its hash names, which lets the cache fill to
four fifths before sets overflow (209 of a million rows were evicted at that load). Per set:

    keys     int64 [8]         one cache line
    control  int32 [16]        one cache line: expiry ticks of the 8 entries, SEQUENCE, HAND, STATES, REFERENCES
    leases   float64 [8]       0, or until when an entry is being fetched (> 0) or left alone after a failure (< 0)
    rows     int32 [8, words]

Ticks are 1/1024 of the time to live, or a millisecond if that is longer. They are kept in 32 bits and compared as
signed differences: an entry that nobody has read for two million times its time to live (and 24 days) after it expired
would look fresh again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flame.features.kernels.codes import BACKING_OFF, EXPIRED, PENDING, ROW, UNKNOWN
from flame.features.kernels.hashing import mix64
from flame.jit import Integer, kernel

WAYS = 8
CONTROL = 16
SPINS = 64
"""Looks at a locked set before another thread is let run."""
SEQUENCE, HAND, STATES, REFERENCES = 8, 9, 10, 11
EMPTY, READY, NEGATIVE, RESERVED = 0, 1, 2, 3


class Entries(NamedTuple):
    """The memory of a cache of n sets: `[8 n]`, `[16 n]`, `[8 n]` and `[8 n, words]`."""

    keys: NDArray[np.int64]
    control: NDArray[np.int32]
    leases: NDArray[np.float64]
    rows: NDArray[np.int32]


@kernel
def sets_of(key: Integer, sets: Integer) -> tuple[Integer, Integer]:
    """The two sets that may hold `key`: each half of the hash scaled to `[0, sets)`."""
    bits = mix64(key)
    high = ((bits >> np.uint64(32)) * np.uint64(sets)) >> np.uint64(32)
    low = ((bits & np.uint64(0xFFFFFFFF)) * np.uint64(sets)) >> np.uint64(32)
    return np.int64(high), np.int64(low)


@kernel
def state_of(entries: Entries, slot: Integer) -> Integer:
    """EMPTY, READY (a row), NEGATIVE (the store has no such item) or RESERVED (claimed, nothing there yet)."""
    return (entries.control[(slot >> 3) * CONTROL + STATES] >> (2 * (slot & 7))) & 3


@kernel
def status_of(entries: Entries, slot: Integer, now: float, tick: Integer) -> Integer:
    """The status bits of an entry; the lease of a fresh one is not looked at, which saves a cache miss."""
    state = state_of(entries, slot)
    bits = ROW if state == READY else UNKNOWN if state == NEGATIVE else 0
    if bits:
        left = np.int32(entries.control[(slot >> 3) * CONTROL + (slot & 7)] - tick)
        if left > 0:
            return bits
        bits |= EXPIRED
    lease = entries.leases[slot]
    if lease > now:
        return bits | PENDING
    return bits | BACKING_OFF if -lease > now else bits


@kernel
def find(entries: Entries, key: Integer, first: Integer, second: Integer) -> Integer:
    """The slot that holds `key`, or -1; the caller has locked both sets."""
    for group in (first, second):
        for way in range(WAYS):
            slot = group * WAYS + way
            if entries.keys[slot] == key and state_of(entries, slot) != EMPTY:
                return slot
    return -1
