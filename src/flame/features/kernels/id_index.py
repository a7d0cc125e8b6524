"""A hash index from item or user id to a position, built once and then only read.

`slots` int64 `[n, 2]`, n a power of two at least twice the ids: the id and its position + 1, or 0 and 0 where the slot
is empty. Collisions go to the next slot. It is part of the file store's format.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flame.features.kernels.hashing import mix64
from flame.features.kernels.instructions import prefetch
from flame.jit import Integer, kernel

Slots = NDArray[np.int64]

_BLOCK = 32


@kernel
def _home(key: Integer, mask: Integer) -> Integer:
    """The slot where the search for `key` begins."""
    return np.int64(mix64(key) & np.uint64(mask))


@kernel
def fill(slots: Slots, ids: NDArray[np.int64]) -> Integer:
    """Enters `ids` into zeroed `slots`; stops at the first id that is there already and returns its place, else -1."""
    mask = len(slots) - 1
    for i in range(len(ids)):
        slot = _home(ids[i], mask)
        while slots[slot, 1] != 0:
            if slots[slot, 0] == ids[i]:
                return i
            slot = (slot + 1) & mask
        slots[slot, 0] = ids[i]
        slots[slot, 1] = i + 1
    return -1


@kernel
def find(slots: Slots, ids: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
    """Writes the position of each of `ids` to `positions`, -1 for an id that is not there."""
    mask = len(slots) - 1
    flat = slots.reshape(-1)
    for start in range(0, len(ids), _BLOCK):
        end = min(start + _BLOCK, len(ids))
        for i in range(start, end):
            prefetch(flat, 2 * _home(ids[i], mask))
        for i in range(start, end):
            slot = _home(ids[i], mask)
            while slots[slot, 1] != 0 and slots[slot, 0] != ids[i]:
                slot = (slot + 1) & mask
            positions[i] = slots[slot, 1] - 1


@kernel
def take(
    rows: NDArray[np.int32],
    positions: NDArray[np.int64],
    out: NDArray[np.int32],
    answers: NDArray[np.uint8],
    found: Integer,
    absent: Integer,
) -> None:
    """Copies `rows[positions[i]]` to `out[i]` and writes `found` to `answers[i]`, or `absent` where there is none."""
    words = rows.shape[1]
    flat = rows.reshape(-1)
    for i in range(len(positions)):
        if positions[i] >= 0:
            for word in range(0, words, 16):
                prefetch(flat, positions[i] * words + word)
    for i in range(len(positions)):
        answers[i] = absent
        if positions[i] >= 0:
            answers[i] = found
            for word in range(words):
                out[i, word] = rows[positions[i], word]
