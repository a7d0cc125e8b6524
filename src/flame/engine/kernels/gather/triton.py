"""Device code that fetches requests from the host's memory."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather(
    header_from,
    sources,
    words,
    with_events,
    with_candidates,
    events_start,
    event_slots,
    candidates_start,
    candidate_slots,
    HEADER: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    LENGTHS_WORD: tl.constexpr,
    SEQUENCES: tl.constexpr,
    EVENT: tl.constexpr,
    CANDIDATE: tl.constexpr,
    EVENTS_FROM: tl.constexpr,
    CAPACITY: tl.constexpr,
    CANDIDATES_FROM: tl.constexpr,
    SOURCE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid (programs of a user, users). What a slot does not use is neither read nor written."""
    user = tl.program_id(1).to(tl.int64)
    header = header_from.to(tl.int64).to(tl.pointer_type(tl.int32)) + user * HEADER
    source = sources.to(tl.int64).to(tl.pointer_type(tl.int64)) + user * SOURCE
    _copy(header, words + user * HEADER, HEADER, CHUNK)
    if with_events != 0:
        events = tl.load(source + EVENTS_FROM).to(tl.pointer_type(tl.int32))
        capacity = tl.load(source + CAPACITY)
        for sequence in range(SEQUENCES):
            length = tl.load(header + LENGTHS_WORD + sequence)
            target = words + events_start + (user * SEQUENCES + sequence) * event_slots * EVENT
            _copy(events + sequence * capacity * EVENT, target, length * EVENT, CHUNK)
    if with_candidates != 0:
        candidates = tl.load(source + CANDIDATES_FROM).to(tl.pointer_type(tl.int32))
        count = tl.load(header + COUNT_WORD)
        _copy(candidates, words + candidates_start + user * candidate_slots * CANDIDATE, count * CANDIDATE, CHUNK)


@triton.jit
def _copy(source, target, count, CHUNK: tl.constexpr):
    """This program's share of `count` words: every so many chunks one."""
    step = tl.num_programs(0) * CHUNK
    for start in range(tl.program_id(0) * CHUNK, count, step):
        place = start + tl.arange(0, CHUNK)
        tl.store(target + place, tl.load(source + place, mask=place < count), mask=place < count)
