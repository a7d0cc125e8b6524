"""Whether requests that could begin wait a bounded moment for others, who would share their launch. No threads."""

from __future__ import annotations

from flame.orchestrator.device import Device
from flame.orchestrator.learning import Rate
from flame.orchestrator.queue import RequestQueue
from flame.orchestrator.ticket import Ticket


class Company:
    """Weighs what sharing a launch saves against what waiting for company costs. Not thread-safe.

    `longest_s` bounds how long a device lets the queue wait, from when the first of it came; 0: nobody waits.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._arrivals = Rate()
        self._since: dict[Device, float] = {}

    def came(self, now: float) -> None:
        """Counts a request that comes."""
        self._arrivals.add(1.0, now)

    def until(self, device: Device, queue: RequestQueue, now: float) -> float:
        """Until when an idle executor of `device` leaves the queue alone; `now` or before, if it does not.

        A device that runs nothing waits for nobody, nor do as many requests as share a launch at most. Else they wait
        as long as one more is expected so soon that it saves more device time than all who wait lose together, and no
        deadline gets near.
        """
        first = queue.head()
        if not self._pays(device, queue, first, now):
            self._since.pop(device, None)
            return now
        since = self._since.setdefault(device, first.submitted)
        until = min(since + self._longest_s, queue.urgent)
        if until <= now:
            del self._since[device]
        return until

    def _pays(self, device: Device, queue: RequestQueue, first: Ticket, now: float) -> bool:
        if not self._longest_s or device.idle == device.executors or len(queue) >= device.profiles.widest:
            return False
        shares = device.profiles.tier(first.demand.events).shares
        alone, shared = (shares[users].rank.costs[first.demand.candidates] for users in (1, max(shares)))
        rate = self._arrivals.value(now)
        return bool(rate) and len(queue) * 1e3 / rate <= alone - shared
