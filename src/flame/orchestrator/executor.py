"""Runs launches: static buffers of every profile, filled from request buffers, read back into request scores."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.spec import Profile
from flame.orchestrator.profiles import Kind
from flame.orchestrator.slots import Slots
from flame.orchestrator.ticket import Part


class Executor:
    """Owns launch buffers for each profile, allocated here and never later. Used by one thread at a time."""

    def __init__(self, engine: Engine, profiles: Sequence[Profile]) -> None:
        self.device = engine.device
        self._engine = engine
        self._buffers: dict[Profile, tuple[LaunchBuffers, Slots]] = {}
        for profile in profiles:
            buffers = engine.buffers(profile)
            self._buffers[profile] = buffers, Slots(buffers)

    def run(self, profile: Profile, kind: Kind, parts: Sequence[Part], times: list[float]) -> None:
        """Fills slot `i` with `parts[i]`, launches, and copies the scores out into each ticket.

        Blocks until the scores are there. Whatever the engine raises comes through; the buffers stay usable. Adds to
        `times` when it began to fill, when it called the engine, and when that returned.
        """
        times.append(time.monotonic())
        buffers, slots = self._buffers[profile]
        slots.fill(kind, parts)
        times.append(time.monotonic())
        if kind == "rank":
            self._engine.rank(buffers, len(parts))
        elif kind == "encode":
            self._engine.encode(buffers, _states(parts))
        else:
            self._engine.score(buffers, _states(parts))
        times.append(time.monotonic())
        if kind != "encode":
            slots.read(parts)


def _states(parts: Sequence[Part]) -> list[HistoryState]:
    states = [part.ticket.held.state for part in parts if part.ticket.held is not None]
    assert len(states) == len(parts), "a request is encoded or scored without a state"
    return states
