"""When a request that came now would be answered: from the work in flight, and from how predictions turned out lately.

A request waits for the work ahead of it, and then takes its own time. Both are known as what requests would cost
alone; but they share launches and encoded histories, launches slow each other down, and features have to be gathered.
All of that is learned: what a predicted millisecond is of device time, what it is of a request's own time, what goes
on beside both, and how far beyond what is expected all but a few answers stay.
"""

from __future__ import annotations

import math

from flame.orchestrator.crowd import Crowd
from flame.orchestrator.lane import Lane
from flame.orchestrator.learning import Mean, Ratio, WorstLately
from flame.orchestrator.outcome import Scored
from flame.orchestrator.permit import Place
from flame.orchestrator.queue import BATCH_SHARE
from flame.records import Priority

_MARGIN = 1.25
_OVERTAKEN_MARGIN = 2.0
"""How far beyond what is expected answers are taken to come, before there is any experience: those of users who have
none in flight, and those whose turn comes after the turns of others who are not there yet."""
_WIDEST = 4.0
"""The most that is allowed for: a bad moment must not keep a server from work as long as it is remembered."""
_APPRENTICESHIP = 256
"""Answers after which expectations are worth comparing with what came."""
_LEFT = BATCH_SHARE
"""What those who overtake leave of the executors at least."""
_FADING = 0.998
"""What is left, with every request that comes, of the cost of the largest one."""


class Forecast:
    """Knows the work in flight. Not thread-safe: admission's lock guards it."""

    def __init__(self, executors: int) -> None:
        self.crowd = Crowd()
        self._executors = executors
        self._lanes: dict[Priority, Lane] = {"interactive": Lane(), "batch": Lane()}
        self._largest_ms = 0.0
        self._device = Ratio()
        self._own = Ratio()
        self._beside_ms = Mean()
        self._compared = -_APPRENTICESHIP
        self._excess: dict[tuple[Priority, bool, int], WorstLately] = {}

    @property
    def correction(self) -> float:
        """How many milliseconds of device time a predicted one turned out to be, lately."""
        return self._device.value

    def place(self, user: int, priority: Priority, cost_ms: float, now: float) -> Place:
        """Where a request would be that came now."""
        first = not self._lanes[priority].rounds.held(user)
        ahead_ms = self._ahead_ms(user, priority, first, now) / self._executors
        return Place(user, priority, first, cost_ms, ahead_ms, now, self._expected(ahead_ms, cost_ms))

    def latest_ms(self, place: Place) -> float:
        """Milliseconds in which all but a few such requests are answered."""
        return self._latest(place, place.expected_ms)

    def came(self, place: Place) -> None:
        """Counts a request that came, whether it is let in or not."""
        faded_ms = self._largest_ms * _FADING
        self._largest_ms = faded_ms if faded_ms > place.cost_ms else place.cost_ms

    def fair_ms(self, place: Place) -> float:
        """`latest_ms` of a request as large as any that came lately, where more work than that is ahead.

        Were each let in by its own size, small ones would take every gap before a large one could: an overloaded
        server would answer small ones only.
        """
        cost_ms = self._largest_ms if self._largest_ms < place.ahead_ms else place.ahead_ms
        if cost_ms <= place.cost_ms:
            return self.latest_ms(place)
        return self._latest(place, self._expected(place.ahead_ms, cost_ms))

    def enter(self, place: Place) -> None:
        """Counts a request in."""
        self.crowd.add(place.priority)
        self._lanes[place.priority].enter(place)

    def leave(self, place: Place) -> None:
        """Counts a request out."""
        self.crowd.add(place.priority, -1)
        self._lanes[place.priority].leave(place)

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

    def _ahead_ms(self, user: int, priority: Priority, first: bool, now: float) -> float:
        """The work that is served first: what waits before this request, and what will come and overtake it."""
        lane = self._lanes[priority]
        ahead_ms = lane.work_ms * lane.rounds.ahead(user)
        taken = 0.0 if first else self._share(lane.coming.part(now))
        if priority == "interactive":
            if behind_ms := self._lanes["batch"].work_ms:
                ahead_ms += min(behind_ms, BATCH_SHARE * ahead_ms)
        else:
            interactive = self._lanes["interactive"]
            ahead_ms += interactive.work_ms
            taken += self._share(interactive.coming.value(now))
        return ahead_ms / max(_LEFT, 1 - taken) if taken else ahead_ms

    def _share(self, rate: float) -> float:
        """The share of all executors' time that goes to requests that come at so many milliseconds a second."""
        return rate / 1e3 * self._device.value / self._executors

    def _expected(self, ahead_ms: float, cost_ms: float) -> float:
        """An idle server trusts no bad experience: were all refused on its account, nothing would ever correct it."""
        if not self.crowd.total:
            return cost_ms * min(1.0, self._own.value)
        return self._beside_ms.value + ahead_ms * self._device.value + cost_ms * self._own.value

    def _latest(self, place: Place, expected_ms: float) -> float:
        """`latest_ms`, were it expected then."""
        if not self.crowd.total:
            return expected_ms
        excess = self._excess.get(_likes(place, expected_ms))
        return expected_ms * min(_WIDEST, excess.value if excess else _first_guess(place))

    def _compare(self, place: Place, took_ms: float) -> None:
        self._compared += 1
        expected_ms = place.expected_ms
        if self._compared > 0 and expected_ms:
            likes = _likes(place, expected_ms)
            excess = self._excess.get(likes)
            if excess is None:
                excess = self._excess[likes] = WorstLately(_first_guess(place))
            excess.add(took_ms / expected_ms)


def _first_guess(place: Place) -> float:
    return _MARGIN if place.first else _OVERTAKEN_MARGIN


def _likes(place: Place, expected_ms: float) -> tuple[Priority, bool, int]:
    """What is learned apart: whether others can overtake, and how long the wait is. A launch that takes longer than it
    should is much to who waits for little, and little to who waits for long."""
    return place.priority, place.first, math.frexp(expected_ms)[1]
