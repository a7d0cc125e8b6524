"""From the queue to launches: which requests are planned together, for which device. No threads, no waiting.

They are taken in the order of the queue, as many at once as fill some launches without leaving another executor idle.
Of requests with the same history, one is planned before the others, who may then share what it encodes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from flame.errors import ExecutionError, FlameError
from flame.orchestrator.device import Device
from flame.orchestrator.job import Job
from flame.orchestrator.placement import Round
from flame.orchestrator.plan import Launch, Planner
from flame.orchestrator.queue import RequestQueue
from flame.orchestrator.ticket import Ticket

_log = logging.getLogger(__name__)

AHEAD_MS = 12.0
"""Device time of the requests that are planned together, about, where a device has several executors. The more they
are, the more of one size are found, which leave fewer slots empty and share wider launches. But nothing begins while
they are planned, which hides only behind launches of other executors; and whoever comes later waits for what is
planned, unless that is batch work and they are interactive."""

LEAST, MOST = 2, 16
"""Full launches' worth of requests that are planned together where there are as many, whatever they take."""
POSTPONED = 4
"""Launches of batch requests that let others go first, from which on no more are planned: some fill up others, but
they hold the states that their histories are encoded into."""


class Batching:
    """Plans requests of `queue` for `devices`, which are told apart by their place. The schedule's lock guards it.

    `fail` ends a request with an error.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        queue: RequestQueue,
        planner: Planner,
        fail: Callable[[Ticket, FlameError], None],
    ) -> None:
        self._devices = devices
        self._others = [[other for other in devices if other is not device] for device in devices]
        self._queue = queue
        self._planner = planner
        self._fail = fail
        self._planned = 0

    def plan(self, device: int, now: float) -> bool:
        """Turns the next requests into jobs: a fair share of the queue for each idle executor. False without any."""
        own = self._devices[device]
        batch, twins = self._batch(device, now)
        if not batch:
            return False
        demands = own.reuse.demands(batch, twins)
        try:
            plan = self._planner(demands, own.profiles, own.reuse.pool.free())
        except Exception as cause:
            _log.exception("planning failed for %s", demands)
            for ticket in batch:
                self._fail(ticket, ExecutionError(f"planning failed with {type(cause).__name__}; see the server's log"))
        else:
            own.apiece_ms = plan.predicted_ms / len(batch)
            self._commit(device, plan.launches, batch)
        return True

    def _batch(self, device: int, now: float) -> tuple[list[Ticket], list[Ticket]]:
        """Takes the next requests out of the queue; those with the history of one of them, and those that are left for
        another device, stay at its head."""
        own, others, queue = self._devices[device], self._others[device], self._queue
        reuse = own.reuse
        looked = Round(own, others, now)
        most = min(self._share(own), self._ahead(own))
        batch: list[Ticket] = []
        twins: list[Ticket] = []
        back: list[Ticket] = []
        new: set[bytes] = set()
        only_interactive = own.postponed >= POSTPONED
        for _ in range(len(queue)):
            if len(batch) >= most or (only_interactive and not queue.interactive):
                break
            ticket = queue.pop()
            key = reuse.key(ticket)
            if refusal := ticket.refusal(now):
                self._fail(ticket, refusal)
            elif key in new:
                twins.append(ticket)
                back.append(ticket)
            elif others and looked.leaves(ticket):
                back.append(ticket)
            else:
                ticket.device = device
                batch.append(ticket)
                if key and not reuse.find(ticket) and reuse.worth_waiting(ticket):
                    new.add(key)
        queue.put_back(back)
        if not batch:
            own.retry = looked.retry
        return batch, twins

    def _share(self, own: Device) -> int:
        """How many of the queue an executor of a device may plan: others that are idle get as many, and of several
        devices those that are busy now will ask soon, and could not have what is planned for another."""
        share = -(-len(self._queue) // max(sum([one.idle for one in self._devices]), 1))
        if len(self._devices) == 1:
            return share
        executors = sum([device.executors for device in self._devices])
        return min(share, max(own.profiles.widest, -(-len(self._queue) // executors)))

    def _ahead(self, own: Device) -> int:
        """How many requests are planned together, in full launches, if they cost what those of the last plan did.

        While interactive requests wait, batch ones fill up their launches, and no more.
        """
        widest = own.profiles.widest
        wanted = AHEAD_MS * (own.executors > 1) / own.apiece_ms if own.apiece_ms else math.inf
        interactive = -(-self._queue.interactive // widest) or MOST
        return widest * max(LEAST, int(min(wanted / widest, interactive, MOST)))

    def _commit(self, device: int, launches: tuple[Launch, ...], batch: list[Ticket]) -> None:
        own = self._devices[device]
        jobs: list[Job] = []
        all_interactive = "batch" not in [ticket.priority for ticket in batch]
        for launch in launches:
            seated = [batch[piece.demand] for piece in launch.slices]
            job = Job(self._planned, launch, seated, device)
            job.batch = not all_interactive and "interactive" not in [ticket.priority for ticket in seated]
            self._planned += 1
            tickets = set(seated)
            for ticket in tickets:
                ticket.left += 1
                if launch.kind == "encode":
                    own.reuse.own(ticket, job)
            earlier = [jobs[place] for place in launch.after]
            if launch.kind == "score":
                earlier += own.reuse.fillers(tickets)
            for before in earlier:
                job.wait_for(before)
                if not job.batch:
                    own.hasten(before)
            jobs.append(job)
        own.plan(jobs)
