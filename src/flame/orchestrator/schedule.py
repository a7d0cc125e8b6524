"""What waits and what runs: the queue of requests, and of the launches planned for them. No threads, no waiting.

Requests are planned when an executor asks for work and no planned launch is ready, oldest first, as many at once as
can share a launch without leaving another executor idle. Of requests with the same history, one is planned before the
others, who may then share what it encodes. Launches start in planned order once those they depend on have ended.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Sequence

from flame.engine.backends.base import HistoryState
from flame.errors import ExecutionError, FlameError
from flame.orchestrator.job import Job
from flame.orchestrator.plan import Launch, Planner
from flame.orchestrator.profiles import ProfileSet
from flame.orchestrator.reuse import Reuse
from flame.orchestrator.ticket import Ticket

_log = logging.getLogger(__name__)


class Schedule:
    """Owner of all tickets. Not thread-safe: the orchestrator holds its lock around every call."""

    def __init__(self, profiles: ProfileSet, reuse: Reuse, planner: Planner, executors: int) -> None:
        self._profiles = profiles
        self._reuse = reuse
        self._planner = planner
        self._idle = executors
        self._pending: deque[Ticket] = deque()
        self._ready: list[Job] = []
        self._settled: list[Ticket] = []
        self._tickets: set[Ticket] = set()
        self._planned = 0
        self.waiting = 0
        """Launches planned and not begun."""

    @property
    def alive(self) -> int:
        """Requests accepted and not yet settled."""
        return len(self._tickets)

    @property
    def has_work(self) -> bool:
        """Whether there is anything for `take` to look at."""
        return bool(self._ready or self._pending)

    def add(self, ticket: Ticket) -> None:
        """Queues an accepted request."""
        self._tickets.add(ticket)
        self._pending.append(ticket)

    def take(self, now: float) -> Job | None:
        """The next launch to run, counted as running from now on; None when there is nothing to do.

        Requests that are late or cancelled are dropped here, before each of their launches.
        """
        while self._ready or self._pending:
            if not self._ready:
                self._plan(now)
                continue
            job = heapq.heappop(self._ready)
            self.waiting -= 1
            if self._begin(job, now):
                return job
            self._unblock(job)
        return None

    def finish(self, job: Job, *, began: float, ended: float, error: FlameError | None = None) -> None:
        """Books a launch that `take` gave out; with `error`, it fails the requests in it and nobody else."""
        self._idle += 1
        self._charge(job, (ended - began) * 1e3)
        for ticket in job.requests():
            ticket.running -= 1
            ticket.left -= 1
            ticket.launches += 1
            ticket.ended = ended
            ticket.error = ticket.error or error
            self._reuse.ended(ticket, job.launch.kind, sound=error is None)
            self._settle_if_over(ticket)
        self._unblock(job)

    def give_up(self, job: Job, *, began: float, now: float, error: FlameError) -> list[int]:
        """Fails the requests of a launch that does not end. The history lengths of the states that it takes with it."""
        lost = self._reuse.lose(job)
        self.finish(job, began=began, ended=now, error=error)
        return lost

    def staff(self, executors: int) -> None:
        """That many more idle executors ask for work from now on; less than none: fewer."""
        self._idle += executors

    def replace_states(self, states: Sequence[tuple[int, HistoryState]]) -> None:
        """New states, each with its history length, in place of those that launches took with them."""
        for history, state in states:
            self._reuse.pool.replace(history, state)

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
            ticket.error = ticket.error or error
            self._settle(ticket)
        self._pending.clear()
        self._ready.clear()
        self.waiting = 0
        return sound

    def pop_settled(self) -> list[Ticket]:
        """Tickets that ended since the last call; the caller answers them without the lock."""
        settled, self._settled = self._settled, []
        return settled

    def _plan(self, now: float) -> None:
        """Turns the oldest requests into jobs: a fair share of the queue for each idle executor."""
        batch, twins = self._batch(now)
        if not batch:
            return
        demands = self._reuse.demands(batch, twins)
        try:
            plan = self._planner(demands, self._profiles, self._reuse.pool.free())
        except Exception as cause:
            _log.exception("planning failed for %s", demands)
            for ticket in batch:
                self._fail(ticket, ExecutionError(f"planning failed with {type(cause).__name__}; see the server's log"))
            return
        self._commit(plan.launches, batch)

    def _batch(self, now: float) -> tuple[list[Ticket], list[Ticket]]:
        """Takes the next requests out of the queue; those with the history of one of them stay at its head."""
        share = -(-len(self._pending) // max(self._idle, 1))
        batch: list[Ticket] = []
        twins: list[Ticket] = []
        new: set[bytes] = set()
        while self._pending and len(batch) < min(share, self._profiles.widest):
            ticket = self._pending.popleft()
            key = self._reuse.key(ticket)
            if refusal := ticket.refusal(now):
                self._fail(ticket, refusal)
            elif key in new:
                twins.append(ticket)
            else:
                batch.append(ticket)
                if key and not self._reuse.find(ticket):
                    new.add(key)
        self._pending.extendleft(reversed(twins))
        return batch, twins

    def _commit(self, launches: tuple[Launch, ...], batch: list[Ticket]) -> None:
        jobs: list[Job] = []
        for launch in launches:
            job = Job(self._planned, launch, [batch[piece.demand] for piece in launch.slices])
            self._planned += 1
            tickets = job.tickets()
            for ticket in tickets:
                ticket.left += 1
                if launch.kind == "encode":
                    self._reuse.own(ticket, job)
            for before in [jobs[place] for place in launch.after]:
                job.wait_for(before)
            if launch.kind == "score":
                for before in self._reuse.fillers(tickets):
                    job.wait_for(before)
            jobs.append(job)
        self.waiting += len(jobs)
        for job in jobs:
            if not job.waits:
                heapq.heappush(self._ready, job)

    def _begin(self, job: Job, now: float) -> bool:
        """Drops who need not be served any more; whether anybody is left to run it for."""
        for ticket in job.tickets():
            if not ticket.error and (refusal := ticket.refusal(now)):
                self._fail(ticket, refusal)
        job.seat()
        for ticket in job.requests():
            ticket.running += 1
            ticket.started = now if ticket.started is None else ticket.started
        self._idle -= bool(job.parts)
        return bool(job.parts)

    def _unblock(self, job: Job) -> None:
        for dependent in job.dependents:
            dependent.waits -= 1
            if not dependent.waits:
                heapq.heappush(self._ready, dependent)

    def _charge(self, job: Job, spent_ms: float) -> None:
        """Divides the time of a launch among its requests, by candidates; encoding, by heads."""
        weights = [max(1, part.stop - part.start) for part in job.parts]
        for part, weight in zip(job.parts, weights, strict=True):
            part.ticket.spent_ms += spent_ms * weight / sum(weights)

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
        self._tickets.discard(ticket)
        stranded = self._reuse.leave(ticket)
        self._pending.extendleft(reversed(stranded))
        self._settled.append(ticket)
