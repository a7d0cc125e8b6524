"""A launch buffer as slots of requests: what is put into it before a launch, and copied out of it afterwards.

Where the engine fetches a request from the memory it lies in, only its header is copied. What of a request goes where
is worked out in compiled code, one call for a launch: in Python it would take longer than the copies.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence

import numpy as np

from flame.engine.backends.base import LaunchBuffers
from flame.layout import SOURCE_WORDS, Words
from flame.orchestrator.kernels.fill import (
    CANDIDATE,
    CANDIDATES_AT,
    CANDIDATES_HELD,
    EVENT,
    EVENTS,
    EVENTS_AT,
    HEADER,
    PART_WORDS,
    PREFIX_WORD,
    SEQUENCES,
    SIZES,
    fill_slots,
    point_slots,
)
from flame.orchestrator.profiles import Kind
from flame.orchestrator.ticket import Part


class Slots:
    """The host side of one executor's buffers for one profile. Used by one thread at a time."""

    def __init__(self, buffers: LaunchBuffers) -> None:
        layout, record = buffers.layout, buffers.layout.record
        self._events = layout.events
        self._candidates = layout.candidates
        self._prefix = record.prefix
        self._header = layout.views(buffers.words).header
        self._scores = buffers.scores
        self._sources = buffers.sources
        self._own_sources = layout.sources(buffers.words)
        self._target = _address(buffers.words)
        self._sizes = sizes = np.zeros(SIZES, np.int64)
        sizes[HEADER], sizes[SEQUENCES] = record.header_words, record.sequences
        sizes[EVENT], sizes[CANDIDATE] = record.event_words, record.candidate_words
        sizes[EVENTS], sizes[CANDIDATES_HELD] = layout.events, layout.candidates
        sizes[EVENTS_AT], sizes[CANDIDATES_AT] = layout.events_start, layout.candidates_start
        sizes[PREFIX_WORD] = -1 if record.prefix is None else record.prefix

    def fill(self, kind: Kind, parts: Sequence[Part]) -> None:
        """Makes slot `i` what a launch of `kind` reads of `parts[i]`: fetched by the engine where it can reach all of
        them, so that they must stay as they are until it has ended; else by copies, while others get Python's lock."""
        assert len(parts) <= len(self._header), "more parts than slots"
        rows = array("q")
        for part in parts:
            rows.extend(self._row(kind, part))
        table = np.frombuffer(rows, np.int64).reshape(-1, PART_WORDS)
        if self._sources is not None and False not in [part.ticket.features.pinned for part in parts]:
            point_slots(self._header, self._target, self._sizes, table, self._sources)
        else:
            self.fill_by_hand()
            fill_slots(self._header, self._target, self._sizes, table, kind != "score")

    def fill_by_hand(self) -> None:
        """Lets launches read what somebody writes into the buffer itself."""
        if self._sources is not None:
            self._sources[:] = self._own_sources

    def read(self, parts: Sequence[Part]) -> None:
        """Copies the scores of slot `i` into the ticket of `parts[i]`."""
        for slot, (ticket, start, stop, _) in enumerate(parts):
            ticket.scores[start:stop] = self._scores[slot, : stop - start]

    def _row(self, kind: Kind, part: Part) -> tuple[int, ...]:
        """What the kernel is told of one slot."""
        ticket, start, stop, _ = part
        features = ticket.features
        layout = features.layout
        assert kind == "score" or layout.events <= self._events, "a history is longer than its profile"
        count, said, prefix = stop - start, stop - start, -1
        if kind == "encode":
            count, said = 0, min(layout.candidates, self._candidates)
            if self._prefix is not None and ticket.held is not None:
                prefix = ticket.held.prefix
        assert count <= self._candidates, "a slice is longer than its profile"
        return _address(features.words), layout.events, start, count, said, prefix


def warm_up() -> None:
    """Compiles or loads what copies, so that the first launch need not."""
    nothing = np.zeros((0, PART_WORDS), np.int64)
    no_header, sizes = np.zeros((0, 1), np.int32), np.zeros(SIZES, np.int64)
    fill_slots(no_header, 0, sizes, nothing, True)
    point_slots(no_header, 0, sizes, nothing, np.zeros((0, SOURCE_WORDS), np.int64))


def _address(words: Words) -> int:
    """Where `words` lie. NumPy's own ways to ask take five times as long."""
    return ctypes.addressof(ctypes.c_char.from_buffer(words.data))
