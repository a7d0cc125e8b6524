"""The requests of one priority that are in flight, and how fast they come."""

from __future__ import annotations

import msgspec

from flame.orchestrator.learning import Rate
from flame.orchestrator.rounds import Rounds
from flame.records import Priority


class Place(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One request in flight, or that might be.

    `first` says that its user has no other there, `cost_ms` what it costs alone, and `ahead_ms` what is ahead of it for
    each executor. It came when the clock was at `entered`, and is expected to be answered after `expected_ms`.
    """

    user: int
    priority: Priority
    first: bool
    cost_ms: float
    ahead_ms: float
    entered: float
    expected_ms: float


class Lane:
    """Sums over the places of one priority. `coming` are milliseconds of work that come in a second: of all requests,
    and as a part of it of those whose users had none in flight. Not thread-safe."""

    __slots__ = ("coming", "rounds", "work_ms")

    def __init__(self) -> None:
        self.work_ms = 0.0
        self.rounds = Rounds()
        self.coming = Rate()

    def enter(self, place: Place) -> None:
        """Counts a request in."""
        cost_ms = place.cost_ms
        self.coming.add(cost_ms, place.entered, cost_ms if place.first else 0.0)
        self.rounds.enter(place.user)
        self.work_ms += cost_ms

    def leave(self, place: Place) -> None:
        """Counts a request out."""
        self.rounds.leave(place.user)
        # No requests have no work by definition; sums of floats would drift.
        self.work_ms = self.work_ms - place.cost_ms if self.rounds.total else 0.0
