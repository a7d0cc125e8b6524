"""A launch buffer as slots of requests: what is copied into it before a launch, and out of it afterwards.

Of each request that is a handful of contiguous runs. All runs of a launch are one call that keeps Python's lock: NumPy
gives it away for every copy and then queues for it again, which takes longer than the copies of a launch together.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from flame.engine.backends.base import LaunchBuffers
from flame.layout import CANDIDATES
from flame.orchestrator.kernels.runs import copy_runs
from flame.orchestrator.profiles import Kind
from flame.orchestrator.ticket import Part

_WORD = 4


class Slots:
    """The host side of one executor's buffers for one profile. Used by one thread at a time."""

    def __init__(self, buffers: LaunchBuffers) -> None:
        layout, record = buffers.layout, buffers.layout.record
        self._profile = buffers.profile
        self._header = layout.views(buffers.words).header
        self._words = buffers.words.ctypes.data
        self._scores = buffers.scores.ctypes.data
        self._prefix = record.prefix
        self._tasks = buffers.scores.shape[2]
        self._events = layout.events
        self._header_bytes = _WORD * record.header_words
        self._event_bytes = _WORD * record.event_words
        self._candidate_bytes = _WORD * record.candidate_words
        self._events_at = self._words + _WORD * layout.events_start
        self._candidates_at = self._words + _WORD * layout.candidates_start

    def fill(self, kind: Kind, parts: Sequence[Part]) -> None:
        """Copies what a launch of `kind` reads: `parts[i]` into slot `i`."""
        runs: list[int] = []
        counts: list[int] = []
        for slot, part in enumerate(parts):
            counts.append(self._add(runs, kind, slot, part))
        _copy(runs)
        # A count of 0 marks a slot as unused; the rest of its header must still be values that exist.
        self._header[len(parts) :] = 0
        self._header[: len(parts), CANDIDATES] = counts
        if kind == "encode" and self._prefix is not None:
            self._header[: len(parts), self._prefix] = [
                ticket.held.prefix if ticket.held else 0 for ticket, _, _ in parts
            ]

    def read(self, parts: Sequence[Part]) -> None:
        """Copies the scores of slot `i` into the ticket of `parts[i]`."""
        size = self._profile.candidates * self._tasks * _WORD
        runs: list[int] = []
        for slot, (ticket, start, stop) in enumerate(parts):
            row = self._tasks * _WORD
            runs += (ticket.scores_at + start * row, self._scores + slot * size, (stop - start) * row)
        _copy(runs)

    def _add(self, runs: list[int], kind: Kind, slot: int, part: Part) -> int:
        """Adds the runs of one slot; how many candidates its header shall say."""
        ticket, start, stop = part
        source, layout = ticket.words_at, ticket.features.layout
        runs += (self._words + slot * self._header_bytes, source, self._header_bytes)
        if kind != "score":
            self._add_events(runs, slot, part)
        if kind == "encode":
            return min(ticket.demand.candidates, self._profile.candidates)
        assert stop - start <= self._profile.candidates, "a slice is longer than its profile"
        target = self._candidates_at + slot * self._profile.candidates * self._candidate_bytes
        first = source + _WORD * layout.candidates_start + start * self._candidate_bytes
        runs += (target, first, (stop - start) * self._candidate_bytes)
        return stop - start

    def _add_events(self, runs: list[int], slot: int, part: Part) -> None:
        features = part.ticket.features
        assert features.layout.events <= self._events, "a history is longer than its profile"
        sequences = features.layout.record.sequences
        source = part.ticket.words_at + _WORD * features.layout.events_start
        target = self._events_at + slot * sequences * self._events * self._event_bytes
        for sequence, length in enumerate(features.lengths):
            runs += (
                target + sequence * self._events * self._event_bytes,
                source + sequence * features.layout.events * self._event_bytes,
                length * self._event_bytes,
            )


def warm_up() -> None:
    """Compiles or loads what copies, so that the first launch need not."""
    _copy([])


def _copy(runs: list[int]) -> None:
    copy_runs(np.frombuffer(array("q", runs), np.int64))
