"""What waits and what runs: the queue of requests, and of the launches planned for them. No threads, no waiting.

Requests are planned (`flame.orchestrator.batching`) when an executor asks for work and no planned launch is ready.
Launches start in planned order once those they depend on have ended, but interactive requests go before launches of
batch requests only, also where these are planned and those are not. All launches of a request are one device's
(`flame.orchestrator.placement` says whose).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter

from flame.errors import FlameError
from flame.orchestrator.batching import Batching
from flame.orchestrator.company import Company
from flame.orchestrator.crowd import Crowd
from flame.orchestrator.device import Device
from flame.orchestrator.job import Job
from flame.orchestrator.plan import Planner
from flame.orchestrator.queue import RequestQueue
from flame.orchestrator.ticket import Ticket
from flame.records import Priority


class Schedule:
    """Owner of all tickets. Not thread-safe: the orchestrator holds its lock around every call.

    Requests wait in one queue for all `devices`, which are told apart by their place; launches are a device's.
    """

    def __init__(self, devices: Sequence[Device], planner: Planner, company_s: float = 0.0) -> None:
        """`company_s`: the longest that a request waits for others to share its launch."""
        self.devices = tuple(devices)
        self._company = Company(company_s)
        self._pending = RequestQueue()
        self._batching = Batching(self.devices, self._pending, planner, self._fail)
        self._changes = 0
        self._settled: list[Ticket] = []
        self._tickets: dict[Ticket, None] = {}
        self._crowd = Crowd()

    @property
    def alive(self) -> int:
        """Requests accepted and not yet settled."""
        return len(self._tickets)

    def before(self, priority: Priority) -> int:
        """Those of them that take room from a request of `priority`."""
        return self._crowd.before(priority)

    @property
    def pending(self) -> int:
        """Requests not planned yet."""
        return len(self._pending)

    @property
    def waiting(self) -> int:
        """Launches planned and not begun."""
        return sum([device.waiting for device in self.devices])

    def has_work(self, device: int = 0) -> bool:
        """Whether there is anything for `take` to look at that it has not seen yet."""
        own = self.devices[device]
        return own.has_ready or (bool(self._pending) and own.seen != self._changes)

    def caller(self, ticket: Ticket) -> int | None:
        """The device to wake for a new request: an idle one that has its history, else the one that is idle most; None
        where none is."""
        if len(self.devices) == 1:
            return 0 if self.devices[0].idle else None
        wanted = [(device.idle > 0 and device.reuse.has(ticket), device.idle) for device in self.devices]
        best = max(wanted)
        return wanted.index(best) if best[1] else None

    def patience(self, now: float, device: int = 0) -> float | None:
        """Seconds after which `take` should look again at what it left, for company or another device; None where it
        left nothing."""
        retry = self.devices[device].retry
        return max(0.0, retry - now) if retry < math.inf else None

    def add(self, ticket: Ticket) -> None:
        """Queues an accepted request."""
        self._tickets[ticket] = None
        self._crowd.add(ticket.priority)
        self._pending.push(ticket)
        self._company.came(ticket.submitted)
        self._changes += 1

    def withdraw(self, ticket: Ticket, error: FlameError) -> None:
        """Drops what has not begun of a request, unless it has ended."""
        if ticket in self._tickets and not ticket.error:
            self._fail(ticket, error)

    def drop_late(self, now: float) -> None:
        """Fails the requests whose deadline has passed before anything of them began."""
        for ticket in self._pending.pop_late(now):
            refusal = ticket.refusal(now)
            assert refusal, "its deadline has passed"
            self._fail(ticket, refusal)

    def take(self, now: float, device: int = 0) -> Job | None:
        """The next launch for that device, counted as running from now on; None when there is nothing to do there.

        Requests that are late or cancelled are dropped here, before each of their launches; so are those who would be
        late at the end of the launch.
        """
        self.drop_late(now)
        own = self.devices[device]
        if own.retry < math.inf:
            # What was left is looked at again: here, or by the next executor if this one gets busy.
            own.seen, own.retry = -1, math.inf
        while own.has_ready or self._pending:
            if own.yields and self._pending.interactive and self._batching.plan(device, now):
                continue
            if own.has_ready:
                job = own.pop()
                if self._begin(job, now):
                    own.begun(job)
                    return job
                own.unblock(job)
            elif (until := self._company.until(own, self._pending, now)) > now:
                own.seen, own.retry = self._changes, until
                return None
            elif not self._batching.plan(device, now):
                own.seen = self._changes
                return None
        return None

    def finish(self, job: Job, *, began: float, ended: float, error: FlameError | None = None) -> None:
        """Books a launch that `take` gave out; with `error`, it fails the requests in it and nobody else."""
        device = self.devices[job.device]
        device.idle += 1
        device.pace.add(device.profiles.price(job.launch.profile, job.launch.kind), (ended - began) * 1e3)
        self._charge(job, (ended - began) * 1e3)
        for ticket in job.requests():
            ticket.running -= 1
            ticket.left -= 1
            ticket.launches += 1
            ticket.ended = max(ticket.ended, ended)
            ticket.error = ticket.error or error
            if ticket.held is not None:
                device.reuse.ended(ticket, job.launch.kind, sound=error is None)
            self._settle_if_over(ticket)
        device.unblock(job)

    def give_up(self, job: Job, *, began: float, now: float, error: FlameError) -> list[int]:
        """Fails the requests of a launch that does not end. The history lengths of the states that it takes with it."""
        lost = self.devices[job.device].reuse.lose(job)
        self.finish(job, began=began, ended=now, error=error)
        for ticket in job.requests():
            assert ticket.error is not None
            ticket.error = ticket.error.with_lost_features()
        return lost

    def staff(self, executors: int, device: int = 0) -> None:
        """A device has that many more executors, which are idle; less than none: fewer."""
        own = self.devices[device]
        own.executors += executors
        own.idle += executors

    def hand_over(self, device: int) -> None:
        """Where a device has no executor just now and another has, that one takes over what was not begun."""
        if self.devices[device].executors or not any(other.executors for other in self.devices):
            return
        moved: list[Ticket] = []
        for ticket in self._of(device):
            if not ticket.launches and not ticket.running and ticket.device == device:
                waiting = self.devices[device].reuse.leave(ticket)
                ticket.restart()
                moved += [ticket, *waiting]
        self._put_back(moved)

    def leave_out(self, device: int, error: FlameError) -> None:
        """No executor of that device is left: others take over its requests. Those that it had begun fail."""
        own = self.devices[device]
        moved: list[Ticket] = []
        for ticket in self._of(device):
            if ticket.launches:
                self._fail(ticket, error)
            elif ticket.device == device:  # nobody it waited for has been moved with it
                waiting = own.reuse.leave(ticket)
                ticket.restart()
                moved += [ticket, *waiting]
        self._put_back(moved)
        own.clear()

    def cut(self, error: FlameError) -> int:
        """Fails every request that has work not begun; those whose last launches run may finish. How many were cut."""
        cut = [
            ticket for ticket in self._tickets if not ticket.error and (not ticket.left or ticket.left > ticket.running)
        ]
        for ticket in cut:
            self._fail(ticket, error)
        self._pending.clear()
        return len(cut)

    def abandon(self, error: FlameError) -> int:
        """Fails all that is left, also what seems to run: no executor comes back for it. How many had no error yet."""
        left = list(self._tickets)
        sound = sum(ticket.error is None for ticket in left)
        for ticket in left:
            ended = ticket.error or error
            ticket.error = ended.with_lost_features() if ticket.running else ended
            self._settle(ticket)
        self._pending.clear()
        for device in self.devices:
            device.clear()
        return sound

    def pop_settled(self) -> list[Ticket]:
        """Tickets that ended since the last call; the caller answers them without the lock."""
        settled, self._settled = self._settled, []
        return settled

    def _of(self, device: int) -> list[Ticket]:
        """The requests that are planned for a device, oldest first."""
        return sorted((one for one in self._tickets if one.device == device), key=attrgetter("submitted"))

    def _begin(self, job: Job, now: float) -> bool:
        """Drops who need not be served any more; whether anybody is left to run it for."""
        # A slow time is no reason to drop anybody: were all dropped on its account, nobody would ever see it end.
        device = self.devices[job.device]
        takes_ms = device.profiles.price(job.launch.profile, job.launch.kind) * min(1.0, device.pace.value)
        for ticket in job.tickets():
            if not ticket.error and (refusal := ticket.refusal(now, takes_ms)):
                self._fail(ticket, refusal)
        job.seat()
        for ticket in job.requests():
            ticket.running += 1
            if ticket.started is None:
                ticket.started = now
        device.idle -= bool(job.parts)
        return bool(job.parts)

    def _charge(self, job: Job, spent_ms: float) -> None:
        """Divides the time of a launch among its requests, by candidates; encoding, by heads."""
        each = spent_ms / (job.candidates or len(job.parts))
        for ticket, start, stop, _ in job.parts:
            ticket.spent_ms += each * (stop - start or 1)

    def _fail(self, ticket: Ticket, error: FlameError) -> None:
        ticket.error = error
        self._settle_if_over(ticket)

    def _settle_if_over(self, ticket: Ticket) -> None:
        if not ticket.running and (ticket.error or not ticket.left):
            self._settle(ticket)

    def _settle(self, ticket: Ticket) -> None:
        """The end of a ticket, once: its state goes back, and it waits to be answered."""
        if ticket.settled:
            return
        ticket.settled = True
        del self._tickets[ticket]
        self._crowd.add(ticket.priority, -1)
        self._pending.remove(ticket)
        if ticket.device is not None:
            self._put_back(self.devices[ticket.device].reuse.leave(ticket))
        self._settled.append(ticket)

    def _put_back(self, tickets: Sequence[Ticket]) -> None:
        """To the head of the queue, which every device should look at anew."""
        self._pending.put_back(tickets)
        self._changes += 1
