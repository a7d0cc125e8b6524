"""From the packed buffers of requests into a launch buffer, all slots of a launch as one call."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from flame.jit import Integer, kernel, short_kernel
from flame.layout import ALIGN, CANDIDATES, LENGTHS, SOURCE_CANDIDATES, SOURCE_CAPACITY, SOURCE_EVENTS

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
    for slot in range(len(parts)):
        part = parts[slot]
        _fill_header(header, target, sizes, part, slot)
        event = sizes[EVENT] * _WORD
        from_events, from_candidates = _sections(sizes, part)
        if events:
            to_events = target + sizes[EVENTS_AT] * _WORD + slot * sizes[SEQUENCES] * sizes[EVENTS] * event
            for sequence in range(sizes[SEQUENCES]):
                _memcpy(
                    to_events + sequence * sizes[EVENTS] * event,
                    from_events + sequence * part[CAPACITY] * event,
                    header[slot, LENGTHS + sequence] * event,
                )
        candidate = sizes[CANDIDATE] * _WORD
        _memcpy(
            target + sizes[CANDIDATES_AT] * _WORD + slot * sizes[CANDIDATES_HELD] * candidate,
            from_candidates,
            part[COUNT] * candidate,
        )
    _mark_unused(header, parts)


@short_kernel
def point_slots(
    header: NDArray[np.int32],
    target: Integer,
    sizes: NDArray[np.int64],
    parts: NDArray[np.int64],
    sources: NDArray[np.int64],
) -> None:
    """As `fill_slots`, but copies headers alone and sets `sources` `[users, SOURCE_WORDS]` for what follows them."""
    for slot in range(len(parts)):
        part = parts[slot]
        _fill_header(header, target, sizes, part, slot)
        from_events, from_candidates = _sections(sizes, part)
        sources[slot, SOURCE_EVENTS] = from_events
        sources[slot, SOURCE_CAPACITY] = part[CAPACITY]
        sources[slot, SOURCE_CANDIDATES] = from_candidates
    _mark_unused(header, parts)


@kernel
def _fill_header(
    header: NDArray[np.int32], target: Integer, sizes: NDArray[np.int64], part: NDArray[np.int64], slot: Integer
) -> None:
    _memcpy(target + slot * sizes[HEADER] * _WORD, part[ADDRESS], sizes[HEADER] * _WORD)
    header[slot, CANDIDATES] = part[SAID]
    if part[PREFIX] >= 0:
        header[slot, sizes[PREFIX_WORD]] = part[PREFIX]


@kernel
def _sections(sizes: NDArray[np.int64], part: NDArray[np.int64]) -> tuple[Integer, Integer]:
    """Where a request's events and the first of its candidates that are asked for lie."""
    events = part[ADDRESS] + _aligned(sizes[HEADER]) * _WORD
    candidates = events + _aligned(sizes[SEQUENCES] * part[CAPACITY] * sizes[EVENT]) * _WORD
    return events, candidates + part[FIRST] * sizes[CANDIDATE] * _WORD


@kernel
def _mark_unused(header: NDArray[np.int32], parts: NDArray[np.int64]) -> None:
    """A count of 0 marks a slot as unused; the rest of its header must still be values that exist."""
    for slot in range(len(parts), len(header)):
        header[slot] = 0


@kernel
def _aligned(words: Integer) -> Integer:
    """As `flame.layout` aligns sections."""
    return -(-words // ALIGN) * ALIGN
