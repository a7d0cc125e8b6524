"""The requests of one priority that are in flight, and how fast they come."""

from __future__ import annotations

from flame.orchestrator.learning import Rate
from flame.orchestrator.permit import Place
from flame.orchestrator.rounds import Rounds


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
