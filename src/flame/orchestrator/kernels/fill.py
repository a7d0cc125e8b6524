"""From the packed buffers of requests into a launch buffer, all slots of a launch as one call."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from flame.jit import Integer, kernel
from flame.layout import ALIGN, CANDIDATES, LENGTHS

ADDRESS, CAPACITY, FIRST, COUNT, SAID, PREFIX, PART_WORDS = range(7)
"""What a slot is filled from: the address of a request's words, how many events each of its sequences has room for, the
first candidate and how many to copy, and what the header shall say of candidates and prefix (-1: as it is)."""

HEADER, SEQUENCES, EVENT, CANDIDATE, EVENTS, CANDIDATES_HELD, EVENTS_AT, CANDIDATES_AT, PREFIX_WORD, SIZES = range(10)
"""Of a launch buffer: words of a header, sequences, words of an event and of a candidate, slots of events in a sequence
and of candidates, where the two sections start, and the word of a header that is the prefix (-1: none)."""

_memcpy = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))

_WORD = 4


@kernel
def fill_slots(
    header: NDArray[np.int32], target: Integer, sizes: NDArray[np.int64], parts: NDArray[np.int64], events: Integer
) -> None:
    """Fills slot `i` from `parts[i]` `[parts, PART_WORDS]`; the headers of the other slots become 0.

    `header` `[users, words]` lies at the beginning of the launch buffer at address `target`. `events` says whether
    events are copied. Nothing is checked: the caller vouches for the memory, and keeps it alive.
    """
    for slot in range(len(header)):
        if slot >= len(parts):
            # A count of 0 marks a slot as unused; the rest of its header must still be values that exist.
            header[slot] = 0
            continue
        part = parts[slot]
        source, capacity = part[ADDRESS], part[CAPACITY]
        _memcpy(target + slot * sizes[HEADER] * _WORD, source, sizes[HEADER] * _WORD)
        event = sizes[EVENT] * _WORD
        from_events = source + _aligned(sizes[HEADER]) * _WORD
        if events:
            to_events = target + sizes[EVENTS_AT] * _WORD + slot * sizes[SEQUENCES] * sizes[EVENTS] * event
            for sequence in range(sizes[SEQUENCES]):
                _memcpy(
                    to_events + sequence * sizes[EVENTS] * event,
                    from_events + sequence * capacity * event,
                    header[slot, LENGTHS + sequence] * event,
                )
        candidate = sizes[CANDIDATE] * _WORD
        from_candidates = from_events + _aligned(sizes[SEQUENCES] * capacity * sizes[EVENT]) * _WORD
        _memcpy(
            target + sizes[CANDIDATES_AT] * _WORD + slot * sizes[CANDIDATES_HELD] * candidate,
            from_candidates + part[FIRST] * candidate,
            part[COUNT] * candidate,
        )
        header[slot, CANDIDATES] = part[SAID]
        if part[PREFIX] >= 0:
            header[slot, sizes[PREFIX_WORD]] = part[PREFIX]


@kernel
def _aligned(words: Integer) -> Integer:
    """As `flame.layout` aligns sections."""
    return -(-words // ALIGN) * ALIGN
