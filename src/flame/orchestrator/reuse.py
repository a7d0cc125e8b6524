"""Which requests share an encoded history: who encodes it, who waits for that, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence

from flame.metrics import Metrics
from flame.orchestrator.job import Job
from flame.orchestrator.plan import Demand
from flame.orchestrator.profiles import ProfileSet
from flame.orchestrator.recurrence import Recurrence
from flame.orchestrator.states import Held, StatePool
from flame.orchestrator.ticket import Ticket


class _Filling:
    """An encode that has not ended: whose it is, which launch, and who waits for it."""

    __slots__ = ("job", "owner", "waiting")

    def __init__(self, owner: Ticket, job: Job) -> None:
        self.owner = owner
        self.job = job
        self.waiting: list[Ticket] = []


class Reuse:
    """Lends the states of a pool to tickets. Not thread-safe: the schedule's lock guards it.

    A state is scored against only after its encode has ended well. If it does not, those who wait for it are planned
    anew, and then wait for nobody.
    """

    def __init__(self, pool: StatePool, profiles: ProfileSet, keep: int, metrics: Metrics) -> None:
        self.pool = pool
        self._profiles = profiles
        self._metrics = metrics
        self._recurrence = Recurrence(keep) if keep else None
        self._filling: dict[Held, _Filling] = {}

    def key(self, ticket: Ticket) -> bytes:
        """What tells the histories of a batch apart that may be shared; empty for one that is not shared."""
        return ticket.features.fingerprint if self._recurrence and not ticket.alone else b""

    def has(self, ticket: Ticket) -> bool:
        """Whether the history of `ticket` is encoded here, or about to be, and may be shared."""
        return bool(self.key(ticket)) and self.pool.knows(self._length(ticket), ticket.features.fingerprint)

    def find(self, ticket: Ticket) -> bool:
        """Lends `ticket`, which has a `key`, the state of its history, if that is encoded or about to be."""
        held = ticket.held = self.pool.find(self._length(ticket), ticket.features.fingerprint)
        if held is None:
            return False
        if held in self._filling:
            self._filling[held].waiting.append(ticket)
        return True

    def worth_waiting(self, ticket: Ticket) -> bool:
        """Whether others with the history of `ticket` should wait until it is encoded."""
        return self._profiles.tier(ticket.demand.events).worth_waiting[ticket.demand.candidates]

    def demands(self, batch: Sequence[Ticket], twins: Sequence[Ticket]) -> list[Demand]:
        """What the planner is told of a batch; the histories of `twins`, who wait for it, are sure to come again."""
        if self._recurrence is None:
            return [ticket.demand for ticket in batch]
        chance, sure = self._recurrence.share, {self.key(ticket) for ticket in twins}
        new: dict[Demand, Demand] = {}
        demands: list[Demand] = []
        hits = misses = 0
        for ticket in batch:
            demand, key = ticket.demand, self.key(ticket)
            if key:
                self._recurrence.add(key, ticket.features.prefixes)
                if ticket.held is not None:
                    hits += 1
                    demand = demand._replace(encoded=True, again=chance)
                else:
                    misses += 1
                    if key in sure or ticket.features.prefixes:
                        demand = self._grown(ticket, 1.0 if key in sure else chance)
                    else:  # nearly all, which differ in their candidates only
                        demand = new.get(demand) or new.setdefault(demand, demand._replace(again=chance))
            demands.append(demand)
        self._metrics.state_hits.inc(hits)
        self._metrics.state_misses.inc(misses)
        return demands

    def own(self, ticket: Ticket, job: Job) -> None:
        """Lends `ticket` a state that `job` encodes its history into."""
        history, features = self._length(ticket), ticket.features
        held = ticket.held = self.pool.take(history, features.fingerprint, self._prefixes(ticket))
        ticket.fresh = _fresh(ticket, held.prefix)
        self._filling[held] = _Filling(ticket, job)

    def fillers(self, tickets: set[Ticket]) -> set[Job]:
        """The launches of earlier plans that must end before these tickets can be scored; marks who reuses."""
        jobs = set()
        for ticket in tickets:
            filling = self._filling.get(ticket.held) if ticket.held else None
            if filling is None or filling.owner is not ticket:
                ticket.reused = True
                if filling is not None:
                    jobs.add(filling.job)
        return jobs

    def ended(self, ticket: Ticket, kind: str, sound: bool) -> None:
        """A launch of `ticket` has ended. After one that failed, no later request finds the state it read or wrote."""
        if ticket.held is None or kind == "rank":
            return
        if not sound:
            self.pool.forget(ticket.held)
        elif kind == "encode":
            del self._filling[ticket.held]
            self.pool.filled(ticket.held)
            if ticket.held.prefix:
                self._metrics.state_appends.inc()

    def lose(self, job: Job) -> list[int]:
        """`job` was given up and may still touch its states: they are lost. The history length of each that was not."""
        if job.launch.kind == "rank":
            return []
        held = {ticket.held for ticket in job.requests() if ticket.held is not None and not ticket.held.lost}
        for one in held:
            self.pool.lose(one)
        return [one.history for one in held]

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """Takes back the state of a ticket that is over; who waited for it in vain, to be planned anew, in order."""
        held, ticket.held = ticket.held, None
        if held is None:
            return []
        filling = self._filling.get(held)
        stranded = []
        if filling is not None and filling.owner is ticket:
            del self._filling[held]
            self.pool.forget(held)
            stranded = [one for one in filling.waiting if one.held is held and one.reused]
            for one in stranded:
                one.held = None
                one.restart()
                self.pool.give(held)
        self.pool.give(held)
        return stranded

    def _grown(self, ticket: Ticket, again: float) -> Demand:
        """What a ticket demands whose history may be one that was appended to since it was encoded."""
        prefix = self.pool.prefix(self._length(ticket), self._prefixes(ticket))
        return ticket.demand._replace(again=again, fresh=_fresh(ticket, prefix))

    def _prefixes(self, ticket: Ticket) -> Sequence[bytes]:
        return ticket.features.prefixes if self.key(ticket) else ()

    def _length(self, ticket: Ticket) -> int:
        return self._profiles.tier(ticket.demand.events).history


def _fresh(ticket: Ticket, prefix: int) -> float:
    """The share of its events that an encode has to run, if a state holds the oldest `prefix` of them.

    At least that of one tile: an encode of nothing is a launch all the same.
    """
    if not prefix:
        return 1.0
    return max(1 - prefix / ticket.demand.events, 1 / len(ticket.features.prefixes))
