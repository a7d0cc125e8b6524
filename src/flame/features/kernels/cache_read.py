"""The batched look-up of the item cache, without locks.

SEQUENCE of a set is a sequence lock: odd while a writer changes the set. A reader copies a row, looks at SEQUENCE
again and repeats if it moved, so it never returns a torn row and never holds up a writer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flame.features.kernels.codes import EXPIRED, ROW, UNKNOWN
from flame.features.kernels.entries import (
    CONTROL,
    EMPTY,
    REFERENCES,
    SEQUENCE,
    SPINS,
    WAYS,
    Entries,
    sets_of,
    state_of,
    status_of,
)
from flame.features.kernels.instructions import fence, load_acquire, prefetch, yield_core
from flame.jit import Integer, kernel

BLOCK = 32


@kernel
def _guess(keys: NDArray[np.int64], key: Integer, first: Integer, second: Integer) -> Integer:
    """The slot that seems to hold `key`, or -1. Looks at every entry, which the compiler makes a vector loop."""
    slot = np.int64(-1)
    for way in range(WAYS):
        slot = first * WAYS + way if keys[first * WAYS + way] == key else slot
    for way in range(WAYS):
        slot = second * WAYS + way if keys[second * WAYS + way] == key else slot
    return slot


@kernel
def _touch(control: NDArray[np.int32], slot: Integer) -> None:
    """Tells CLOCK that the entry was used; written only once per round, to keep the line shared between cores."""
    index, bit = (slot >> 3) * CONTROL + REFERENCES, 1 << (slot & 7)
    if not control[index] & bit:
        control[index] |= bit


@kernel
def _read(
    entries: Entries,
    slot: Integer,
    key: Integer,
    words: NDArray[np.int32],
    offset: Integer,
    now: float,
    tick: Integer,
) -> Integer:
    """Status of the entry in `slot`, its row copied to `words[offset:]`; -1 if the slot does not hold `key`."""
    sequence_at = (slot >> 3) * CONTROL + SEQUENCE
    spins = 0
    while True:
        sequence = load_acquire(entries.control, sequence_at)
        if not sequence & 1:
            bits = -1
            if entries.keys[slot] == key and state_of(entries, slot) != EMPTY:
                bits = status_of(entries, slot, now, tick)
                if bits & ROW:
                    for word in range(entries.rows.shape[1]):
                        words[offset + word] = entries.rows[slot, word]
            fence()
            if load_acquire(entries.control, sequence_at) == sequence:
                if bits >= 0:
                    _touch(entries.control, slot)
                return bits
        spins += 1
        if spins % SPINS == 0:
            yield_core()


@kernel
def _read_anywhere(
    entries: Entries, key: Integer, words: NDArray[np.int32], offset: Integer, now: float, tick: Integer
) -> Integer:
    """As `_read`, where the first guess was wrong: the entry moved, or an empty slot has the same key."""
    first, second = sets_of(key, len(entries.keys) // WAYS)
    for group in (first, second):
        for way in range(WAYS):
            if entries.keys[group * WAYS + way] == key:
                bits = _read(entries, group * WAYS + way, key, words, offset, now, tick)
                if bits >= 0:
                    return bits
    return 0


@kernel
def lookup(
    entries: Entries,
    ids: NDArray[np.int64],
    words: NDArray[np.int32],
    offsets: NDArray[np.int64],
    status: NDArray[np.uint8],
    now: float,
    tick: Integer,
    scratch: NDArray[np.int64],
) -> Integer:
    """Copies the row of `ids[i]` to `words[offsets[i]:]` and writes `status[i]`; returns how many are not fresh.

    Works in blocks: the keys of a whole block are prefetched, then its rows, then they are read, so that the cache
    misses of a block overlap. `scratch` `[BLOCK, 3]` holds two sets and a slot for each id of a block.
    """
    sets, row_words = len(entries.keys) // WAYS, entries.rows.shape[1]
    flat_rows = entries.rows.reshape(-1)
    unsettled = 0
    for start in range(0, len(ids), BLOCK):
        count = min(BLOCK, len(ids) - start)
        for i in range(count):
            scratch[i, 0], scratch[i, 1] = sets_of(ids[start + i], sets)
            prefetch(entries.keys, scratch[i, 0] * WAYS)
            prefetch(entries.keys, scratch[i, 1] * WAYS)
        for i in range(count):
            slot = _guess(entries.keys, ids[start + i], scratch[i, 0], scratch[i, 1])
            scratch[i, 2] = slot
            if slot >= 0:
                prefetch(entries.control, (slot >> 3) * CONTROL)
                for word in range(0, row_words, 16):
                    prefetch(flat_rows, slot * row_words + word)
        for i in range(count):
            key, offset, slot = ids[start + i], offsets[start + i], scratch[i, 2]
            bits = _read(entries, slot, key, words, offset, now, tick) if slot >= 0 else 0
            if bits < 0:
                bits = _read_anywhere(entries, key, words, offset, now, tick)
            status[start + i] = bits
            unsettled += (bits & (ROW | UNKNOWN)) == 0 or (bits & EXPIRED) != 0
    return unsettled
