"""Runs launches: static buffers of every profile, filled from request buffers, read back into request scores."""

from __future__ import annotations

from collections.abc import Sequence

from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.spec import Profile
from flame.layout import CANDIDATES
from flame.orchestrator.attempt import Attempt
from flame.orchestrator.profiles import Kind
from flame.orchestrator.slots import Slots, warm_up
from flame.orchestrator.ticket import Part


class Executor:
    """Owns launch buffers for each profile, allocated here and never later. Used by one thread at a time."""

    def __init__(self, engine: Engine, profiles: Sequence[Profile]) -> None:
        self._engine = engine
        warm_up()
        self._buffers: dict[Profile, tuple[LaunchBuffers, Slots]] = {}
        for profile in profiles:
            buffers = engine.buffers(profile)
            self._buffers[profile] = buffers, Slots(buffers)

    def run(self, profile: Profile, kind: Kind, parts: Sequence[Part], attempt: Attempt) -> None:
        """Fills slot `i` with `parts[i]`, launches, and copies the scores out into each ticket.

        Blocks until the scores are there. Whatever the engine raises comes through, and `Abandoned` where `attempt`
        was given up meanwhile. From its `begin` on, the host does not read request buffers, though the engine may fetch
        pinned ones; after it was given up, nothing is written to a ticket.
        """
        buffers, slots = self._buffers[profile]
        slots.fill(kind, parts)
        attempt.begin()
        if kind == "rank":
            self._engine.rank(buffers, len(parts))
        elif kind == "encode":
            self._engine.encode(buffers, _states(parts))
        else:
            self._engine.score(buffers, _states(parts))
        attempt.end()
        if kind != "encode":
            slots.read(parts)

    def trial(self) -> None:
        """Ranks one candidate for a user without a history in the smallest profile; raises what the engine raises."""
        buffers, slots = self._buffers[min(self._buffers)]
        slots.fill_by_hand()
        views = buffers.layout.views(buffers.words)
        views.header[:] = 0
        views.header[0, CANDIDATES] = 1
        views.candidates[0, 0] = 0
        self._engine.rank(buffers, 1)


def _states(parts: Sequence[Part]) -> list[HistoryState]:
    states = [part.ticket.held.state for part in parts if part.ticket.held is not None]
    assert len(states) == len(parts), "a request is encoded or scored without a state"
    return states
