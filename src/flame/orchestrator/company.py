"""Whether requests that could begin wait a bounded moment for others, who would share their launch. No threads."""

from __future__ import annotations

from flame.orchestrator.device import Device
from flame.orchestrator.learning import Rate
from flame.orchestrator.queue import RequestQueue


class Company:
    """Weighs what sharing a launch saves against what waiting for company costs. Not thread-safe.

    `longest_s` bounds the wait of every request, from when it came; 0: nobody waits.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._arrivals = Rate()

    def came(self, now: float) -> None:
        """Counts a request that comes."""
        self._arrivals.add(1.0, now)

    def until(self, device: Device, queue: RequestQueue, now: float) -> float:
        """Until when an idle executor of `device` leaves the queue alone; `now` or before, if it does not.

        A device that runs nothing waits for nobody, nor do as many requests as share a launch at most. Else they wait
        as long as one more is expected so soon that it saves more device time than all who wait lose together, and no
        deadline gets near.
        """
        if not self._longest_s or device.idle == device.executors or len(queue) >= device.profiles.widest:
            return now
        first = queue.head()
        shares = device.profiles.tier(first.demand.events).shares
        alone, shared = (shares[users].rank.costs[first.demand.candidates] for users in (1, max(shares)))
        rate = self._arrivals.value(now)
        if not rate or len(queue) * 1e3 / rate > alone - shared:
            return now
        return min(first.submitted + self._longest_s, queue.earliest - 2 * first.cost_ms / 1e3)
