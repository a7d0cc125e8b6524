"""When a request that came now would be answered: from the work in flight, and from how predictions turned out lately.

A request waits for the work ahead of it, and then takes its own time. Both are known as what requests would cost
alone; but they share launches and encoded histories, launches slow each other down, and features have to be gathered.
All of that is learned: what a predicted millisecond is of device time, what it is of a request's own time, what goes
on beside both, and how far beyond what is expected all but a few answers stay.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from flame.orchestrator.crowd import Crowd
from flame.orchestrator.learning import Mean, Rate, Ratio, WorstLately
from flame.orchestrator.queue import BATCH_SHARE
from flame.orchestrator.rounds import Rounds
from flame.orchestrator.ticket import Scored
from flame.records import Priority

_MARGIN = 1.25
"""How far beyond what is expected answers are taken to come, before there is any experience."""
_WIDEST = 4.0
"""The most that is allowed for: a bad moment must not keep a server from work as long as it is remembered."""
_APPRENTICESHIP = 256
"""Answers after which expectations are worth comparing with what came."""
_OVERTAKEN = 1 - BATCH_SHARE
"""The most of the executors that those who overtake can take."""
_FADING = 0.998
"""What is left, with every request that comes, of the cost of the largest one."""


class Place(NamedTuple):
    """One request in flight: what it costs alone, the work ahead of it for each executor, when it came in seconds, and
    how many milliseconds later it is expected to be answered."""

    user: int
    priority: Priority
    cost_ms: float
    ahead_ms: float
    entered: float
    expected_ms: float


class Forecast:
    """Knows the work in flight. Not thread-safe: admission's lock guards it."""

    def __init__(self, executors: int) -> None:
        self.crowd = Crowd()
        self._executors = executors
        self._work_ms: dict[Priority, float] = {"interactive": 0.0, "batch": 0.0}
        self._rounds: dict[Priority, Rounds] = {"interactive": Rounds(), "batch": Rounds()}
        self._coming: dict[Priority, Rate] = {"interactive": Rate(), "batch": Rate()}
        self._overtaking: dict[Priority, Rate] = {"interactive": Rate(), "batch": Rate()}
        self._largest_ms = 0.0
        self._device = Ratio()
        self._own = Ratio()
        self._beside_ms = Mean()
        self._compared = -_APPRENTICESHIP
        self._excess: dict[tuple[Priority, int], WorstLately] = {}

    @property
    def correction(self) -> float:
        """How many milliseconds of device time a predicted one turned out to be, lately."""
        return self._device.value

    def place(self, user: int, priority: Priority, cost_ms: float, now: float) -> Place:
        """Where a request would be that came now."""
        ahead_ms = self._ahead_ms(user, priority) / self._executors / (1 - self._overtaken(user, priority, now))
        return Place(user, priority, cost_ms, ahead_ms, now, self._expected(ahead_ms, cost_ms))

    def latest_ms(self, place: Place) -> float:
        """Milliseconds in which all but a few such requests are answered."""
        excess = self._excess.get(_likes(place))
        margin = min(_WIDEST, excess.value) if excess else _MARGIN
        return place.expected_ms * (margin if self.crowd.total else 1.0)

    def fair_ms(self, place: Place) -> float:
        """`latest_ms` of a request as large as any that came lately, where more work than that is ahead.

        Were each let in by its own size, small ones would take every gap before a large one could: an overloaded
        server would answer small ones only.
        """
        self._largest_ms = max(place.cost_ms, self._largest_ms * _FADING)
        cost_ms = max(place.cost_ms, min(self._largest_ms, place.ahead_ms))
        return self.latest_ms(place._replace(expected_ms=self._expected(place.ahead_ms, cost_ms)))

    def enter(self, place: Place) -> None:
        """Counts a request in."""
        self.crowd.add(place.priority)
        self._coming[place.priority].add(place.cost_ms, place.entered)
        behind = 1 - self._rounds[place.priority].ahead(place.user)
        self._overtaking[place.priority].add(place.cost_ms * behind, place.entered)
        self._rounds[place.priority].enter(place.user)
        self._work_ms[place.priority] += place.cost_ms

    def leave(self, place: Place) -> None:
        """Counts a request out."""
        self.crowd.add(place.priority, -1)
        self._rounds[place.priority].leave(place.user)
        left_ms = self._work_ms[place.priority] - place.cost_ms
        # No requests have no work by definition; sums of floats would drift.
        self._work_ms[place.priority] = left_ms if self.crowd.count(place.priority) else 0.0

    def answered(self, place: Place, scored: Scored, now: float) -> None:
        """Learns from an answer that comes now."""
        took_ms, compute_ms = (now - place.entered) * 1e3, scored.compute_us / 1e3
        self._device.add(place.cost_ms, scored.spent_ms)
        self._own.add(place.cost_ms, compute_ms)
        self._beside_ms.add(max(0.0, took_ms - compute_ms - scored.queue_us / 1e3))
        self._compare(place, took_ms)

    def missed(self, place: Place, now: float) -> None:
        """Learns from a request that is dropped now, as it cannot be in time any more."""
        self._compare(place, (now - place.entered) * 1e3)

    def _ahead_ms(self, user: int, priority: Priority) -> float:
        """The work that the queue serves first: what users have in later rounds than this one is not, and batch work is
        ahead of an interactive request only with its small share."""
        own = self._work_ms[priority] * self._rounds[priority].ahead(user)
        if priority == "batch":
            return self._work_ms["interactive"] + own
        return own + min(self._work_ms["batch"], BATCH_SHARE * own)

    def _overtaken(self, user: int, priority: Priority, now: float) -> float:
        """The share of the executors that goes to requests that come later and are served before this one."""
        rate = self._overtaking[priority].value(now) * self._rounds[priority].ahead(user)
        if priority == "batch":
            rate += self._coming["interactive"].value(now)
        return min(_OVERTAKEN, rate / 1e3 * self._device.value / self._executors)

    def _expected(self, ahead_ms: float, cost_ms: float) -> float:
        """An idle server trusts no bad experience: were all refused on its account, nothing would ever correct it."""
        if not self.crowd.total:
            return cost_ms * min(1.0, self._own.value)
        return self._beside_ms.value + ahead_ms * self._device.value + cost_ms * self._own.value

    def _compare(self, place: Place, took_ms: float) -> None:
        self._compared += 1
        if self._compared > 0:
            self._excess.setdefault(_likes(place), WorstLately(_MARGIN)).add(took_ms / place.expected_ms)


def _likes(place: Place) -> tuple[Priority, int]:
    """What is learned apart: a launch that takes long is much to who waits for little, and little to who waits long."""
    return place.priority, math.frexp(place.expected_ms)[1]
