"""Runs launches: static buffers of every profile, filled from request buffers, read back into request scores."""

from __future__ import annotations

from collections.abc import Sequence

from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.spec import Profile
from flame.layout import CANDIDATES, PackedViews
from flame.orchestrator.profiles import Kind
from flame.orchestrator.ticket import Part


class Executor:
    """Owns launch buffers for each profile, allocated here and never later. Used by one thread at a time."""

    def __init__(self, engine: Engine, profiles: Sequence[Profile]) -> None:
        self._engine = engine
        self._buffers: dict[Profile, tuple[LaunchBuffers, PackedViews]] = {}
        for profile in profiles:
            buffers = engine.buffers(profile)
            self._buffers[profile] = buffers, buffers.layout.views(buffers.words)

    def run(self, profile: Profile, kind: Kind, parts: Sequence[Part]) -> None:
        """Fills slot `i` with `parts[i]`, launches, and copies the scores out into each ticket.

        Blocks until the scores are there. Whatever the engine raises comes through; the buffers stay usable.
        """
        buffers, views = self._buffers[profile]
        self._fill(views, kind, parts)
        if kind == "rank":
            self._engine.rank(buffers, len(parts))
        elif kind == "encode":
            self._engine.encode(buffers, _states(parts))
        else:
            self._engine.score(buffers, _states(parts))
        if kind != "encode":
            for slot, part in enumerate(parts):
                part.ticket.scores[part.start : part.stop] = buffers.scores[slot, : part.stop - part.start]

    def _fill(self, views: PackedViews, kind: Kind, parts: Sequence[Part]) -> None:
        """Copies what a launch of `kind` reads. Each sequence of events and each slice of candidates is one run."""
        # A count of 0 marks a slot as unused; the rest of its header must still be values that exist.
        views.header[len(parts) :] = 0
        for slot, (ticket, start, stop) in enumerate(parts):
            views.header[slot] = ticket.views.header[0]
            if kind == "encode":
                views.header[slot, CANDIDATES] = min(ticket.demand.candidates, views.candidates.shape[1])
                if ticket.held is not None and (word := ticket.features.layout.record.prefix) is not None:
                    views.header[slot, word] = ticket.held.prefix
            else:
                views.header[slot, CANDIDATES] = stop - start
                views.candidates[slot, : stop - start] = ticket.views.candidates[0, start:stop]
            if kind != "score":
                for sequence, length in enumerate(ticket.features.lengths):
                    views.events[slot, sequence, :length] = ticket.views.events[0, sequence, :length]


def _states(parts: Sequence[Part]) -> list[HistoryState]:
    states = [part.ticket.held.state for part in parts if part.ticket.held is not None]
    assert len(states) == len(parts), "a request is encoded or scored without a state"
    return states
