"""Which device a request goes to, where there are several: the one that asks, or the one that has its history.

An idle device takes the next requests of the common queue, so load spreads by itself. It passes over a request whose
history is encoded on another device, when waiting for that device is expected to take less time than is saved by
scoring against the history instead of ranking with it, and the request has not been passed over for longer than that
already. So no request waits for a history longer than having it is worth, however wrong the expectation was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flame.orchestrator.device import Device
from flame.orchestrator.ticket import Ticket


class Round:
    """One look of `device` through the queue; `retry` is when the first request that it passed over is up for grabs.

    O(number of devices) for each request. What was left for another device counts as work of that device.
    """

    def __init__(self, device: Device, others: Sequence[Device], now: float) -> None:
        self.retry = math.inf
        self._device = device
        self._others = others
        self._now = now
        self._left_ms: dict[Device, float] = {}

    def leaves(self, ticket: Ticket) -> bool:
        """Whether `ticket` is left for another device, which has its history."""
        if not self._others or self._device.reuse.has(ticket):
            return False
        home = next((other for other in self._others if other.executors and other.reuse.has(ticket)), None)
        if home is None:
            return False
        events, candidates = ticket.demand.events, ticket.demand.candidates
        saved_ms = self._device.profiles.tier(events).shares[1].saving(candidates)
        since = self._now if ticket.passed_over is None else ticket.passed_over
        until = since + saved_ms / 1e3
        if self._wait_ms(home) >= saved_ms or self._now >= until:
            return False
        ticket.passed_over = since
        self.retry = min(self.retry, until)
        left = home.profiles.predict(events, candidates, encoded=True)
        self._left_ms[home] = self._left_ms.get(home, 0.0) + left
        return True

    def _wait_ms(self, home: Device) -> float:
        """How long one more request is expected to wait there: an idle executor begins at once with what is left."""
        ahead = self._left_ms.get(home, 0.0) + (0.0 if home.idle else home.work_ms)
        return ahead / home.executors
