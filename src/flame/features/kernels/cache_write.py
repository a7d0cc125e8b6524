"""What changes the item cache: insertion, eviction, and the leases that keep two threads from fetching one id.

A writer locks both sets of an id, the lower first, by making their SEQUENCE odd. Within a set the CLOCK algorithm
picks what to evict: a read sets the entry's bit in REFERENCES, and the hand spares an entry with a bit once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flame.features.kernels.codes import BACKING_OFF, EXPIRED, FOUND, PENDING, UNANSWERED
from flame.features.kernels.entries import (
    CONTROL,
    EMPTY,
    HAND,
    NEGATIVE,
    READY,
    REFERENCES,
    RESERVED,
    SEQUENCE,
    SPINS,
    STATES,
    WAYS,
    Entries,
    find,
    sets_of,
    state_of,
    status_of,
)
from flame.features.kernels.instructions import (
    compare_and_swap,
    fence,
    load_acquire,
    store_release,
    yield_core,
)
from flame.jit import Integer, kernel


@kernel
def _lock(control: NDArray[np.int32], group: Integer) -> None:
    index = group * CONTROL + SEQUENCE
    spins = 0
    while True:
        sequence = load_acquire(control, index)
        if not sequence & 1 and compare_and_swap(control, index, sequence, np.int32(sequence + 1)):
            fence()
            return
        spins += 1
        if spins % SPINS == 0:
            yield_core()


@kernel
def _unlock(control: NDArray[np.int32], group: Integer) -> None:
    index = group * CONTROL + SEQUENCE
    store_release(control, index, np.int32(control[index] + 1))


@kernel
def _lock_both(control: NDArray[np.int32], first: Integer, second: Integer) -> None:
    _lock(control, min(first, second))
    if first != second:
        _lock(control, max(first, second))


@kernel
def _unlock_both(control: NDArray[np.int32], first: Integer, second: Integer) -> None:
    _unlock(control, first)
    if first != second:
        _unlock(control, second)


@kernel
def _set_state(control: NDArray[np.int32], slot: Integer, state: Integer) -> None:
    index, shift = (slot >> 3) * CONTROL + STATES, 2 * (slot & 7)
    control[index] = (control[index] & ~(3 << shift)) | (state << shift)


@kernel
def _free_slot(entries: Entries, group: Integer) -> tuple[Integer, Integer]:
    """How many entries of a set are empty, and the last of them."""
    count, found = 0, -1
    for slot in range(group * WAYS, (group + 1) * WAYS):
        if state_of(entries, slot) == EMPTY:
            count += 1
            found = slot
    return count, found


@kernel
def _evicted(control: NDArray[np.int32], group: Integer) -> Integer:
    """The slot that CLOCK gives up in a set."""
    hand, references = group * CONTROL + HAND, group * CONTROL + REFERENCES
    while True:
        way = control[hand] & 7
        control[hand] = (control[hand] + 1) & 0x7FFFFFFF
        if not (control[references] >> way) & 1:
            return group * WAYS + way
        control[references] &= ~(1 << way)


@kernel
def _place(entries: Entries, first: Integer, second: Integer) -> Integer:
    """The slot for a new entry: an empty one of the emptier set, else what the set with fewer evictions gives up."""
    free_first, slot_first = _free_slot(entries, first)
    free_second, slot_second = _free_slot(entries, second)
    if free_first or free_second:
        return slot_first if free_first >= free_second else slot_second
    control = entries.control
    calmer = first if control[first * CONTROL + HAND] <= control[second * CONTROL + HAND] else second
    return _evicted(control, calmer)


@kernel
def _take(entries: Entries, key: Integer, first: Integer, second: Integer) -> Integer:
    """The slot of `key`, reserved for it if there was none; the caller has locked both sets."""
    slot = find(entries, key, first, second)
    if slot < 0:
        slot = _place(entries, first, second)
        entries.keys[slot] = key
        entries.leases[slot] = 0.0
        _set_state(entries.control, slot, RESERVED)
        entries.control[(slot >> 3) * CONTROL + REFERENCES] &= ~(1 << (slot & 7))
    return slot


@kernel
def insert(
    entries: Entries,
    ids: NDArray[np.int64],
    rows: NDArray[np.int32],
    answers: NDArray[np.uint8],
    expiry: Integer,
) -> None:
    """Writes `rows` `[n, words]` of found ids and notes absent ones until tick `expiry`; ends the leases of both."""
    for i in range(len(ids)):
        if answers[i] == UNANSWERED:
            continue
        first, second = sets_of(ids[i], len(entries.keys) // WAYS)
        _lock_both(entries.control, first, second)
        slot = _take(entries, ids[i], first, second)
        entries.leases[slot] = 0.0
        entries.control[(slot >> 3) * CONTROL + (slot & 7)] = np.int32(expiry)
        if answers[i] == FOUND:
            _set_state(entries.control, slot, READY)
            for word in range(rows.shape[1]):
                entries.rows[slot, word] = rows[i, word]
        else:
            _set_state(entries.control, slot, NEGATIVE)
        _unlock_both(entries.control, first, second)


@kernel
def claim(
    entries: Entries,
    ids: NDArray[np.int64],
    mine: NDArray[np.bool_],
    now: float,
    until: float,
    tick: Integer,
) -> None:
    """Takes the lease of every id that is not fresh and that nobody else holds: `mine[i]` says which."""
    for i in range(len(ids)):
        first, second = sets_of(ids[i], len(entries.keys) // WAYS)
        _lock_both(entries.control, first, second)
        slot = _take(entries, ids[i], first, second)
        bits = status_of(entries, slot, now, tick)
        mine[i] = bits == 0 or (bits & (EXPIRED | PENDING | BACKING_OFF)) == EXPIRED
        if mine[i]:
            entries.leases[slot] = until
        _unlock_both(entries.control, first, second)


@kernel
def set_lease(entries: Entries, ids: NDArray[np.int64], lease: float) -> None:
    """Sets the lease of every id that has an entry."""
    for i in range(len(ids)):
        first, second = sets_of(ids[i], len(entries.keys) // WAYS)
        _lock_both(entries.control, first, second)
        slot = find(entries, ids[i], first, second)
        if slot >= 0:
            entries.leases[slot] = lease
        _unlock_both(entries.control, first, second)
