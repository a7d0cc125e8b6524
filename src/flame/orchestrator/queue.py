"""The order in which waiting requests are served: interactive before batch, and users in turn. Not thread-safe.

Two rules, each O(1) for every request:

* **Users take turns.** Within a priority each user who waits has one turn, in the order in which they came, and a turn
  is one request. So a request waits for one of every other user's requests for each of its own user's before it, and
  for nobody's backlog. One user alone, or users with one request each, are served as they came.
* **Batch has a small share.** Interactive requests go first, but while batch requests wait, what is taken of them adds
  up to `BATCH_SHARE` of what is taken of interactive ones, in predicted milliseconds: the next batch request waits for
  interactive work of at most its own cost divided by `BATCH_SHARE`, and one request more.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Sequence

from flame.orchestrator.ticket import Ticket
from flame.records import Priority

BATCH_SHARE = 0.05
"""Device time of batch requests for that of interactive ones, where both wait."""

_SPARE = 64
"""Entries of requests that have left, kept before they are cleared away."""


class RequestQueue:
    """Requests that are not planned yet. Every request in it is there once."""

    def __init__(self) -> None:
        self._interactive, self._batch = _Turns(), _Turns()
        self._turns: dict[Priority, _Turns] = {"interactive": self._interactive, "batch": self._batch}
        self._earned_ms = 0.0
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._entries = 0
        self._kept = 0  # deadlines that were left when those of requests that had left were last cleared away

    def __len__(self) -> int:
        return self._interactive.count + self._batch.count

    @property
    def interactive(self) -> int:
        """How many of them are interactive."""
        return self._interactive.count

    @property
    def urgent(self) -> float:
        """When the request with the earliest deadline should begin: twice what it is predicted to cost before that."""
        if not self._deadlines:
            return math.inf
        deadline, _, ticket = self._deadlines[0]
        return deadline - 2 * ticket.cost_ms / 1e3

    def head(self) -> Ticket:
        """The request that `pop` would take; there must be one."""
        return self._next().head()

    def push(self, ticket: Ticket) -> None:
        """Puts a new request at the end of its user's, and a user who did not wait at the end of the users."""
        self._turns[ticket.priority].push(ticket)
        self._expect(ticket)

    def put_back(self, tickets: Sequence[Ticket]) -> None:
        """Gives requests that were popped, and their users, their places back: the first comes next of its priority."""
        for ticket in reversed(tickets):
            self._turns[ticket.priority].put_back(ticket)
            if ticket.priority == "interactive":  # it was not served after all
                self._earned_ms = max(0.0, self._earned_ms - BATCH_SHARE * ticket.cost_ms)
            self._expect(ticket)

    def pop(self) -> Ticket:
        """Takes out whoever is next; there must be somebody."""
        if not self._batch.count:
            return self._interactive.pop()
        ticket = self._next().pop()
        if ticket.priority == "batch":
            self._earned_ms = max(0.0, self._earned_ms - ticket.cost_ms)
        else:
            self._earned_ms += BATCH_SHARE * ticket.cost_ms
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Takes out a request, wherever it waits; nothing happens where it does not."""
        if ticket in self:
            self._turns[ticket.priority].remove(ticket)

    def pop_late(self, now: float) -> list[Ticket]:
        """Takes out the requests whose deadline has passed, so that those behind them are counted and served as if
        they had never come; also names those that are planned and have not begun. O(log n) for each."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heapq.heappop(self._deadlines)[2]
            if self._waits(ticket):
                self.remove(ticket)
                late.append(ticket)
        return late

    def clear(self) -> None:
        """Forgets all requests."""
        for turns in self._turns.values():
            turns.clear()
        self._deadlines.clear()

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._turns[ticket.priority]

    def _next(self) -> _Turns:
        """Whose turn it is."""
        interactive, batch = self._interactive, self._batch
        first = not interactive.count or (batch.count and self._earned_ms >= batch.head().cost_ms)
        return batch if first else interactive

    def _expect(self, ticket: Ticket) -> None:
        """Remembers the deadline. Entries of requests that have left go when they may be the greater part."""
        if ticket.deadline is None:
            return
        self._entries += 1
        heapq.heappush(self._deadlines, (ticket.deadline, self._entries, ticket))
        if len(self._deadlines) > 2 * self._kept + _SPARE:
            self._deadlines = [*{entry[2]: entry for entry in self._deadlines if self._waits(entry[2])}.values()]
            self._kept = len(self._deadlines)
            heapq.heapify(self._deadlines)

    def _waits(self, ticket: Ticket) -> bool:
        """Whether `ticket` is here, or planned without having begun."""
        return ticket in self or (ticket.device is not None and ticket.started is None and not ticket.settled)


class _Turns:
    """The `count` requests of one priority: users in the order of their turns, each with requests as they came."""

    def __init__(self) -> None:
        self._users: OrderedDict[int | None, OrderedDict[Ticket, None]] = OrderedDict()
        self.count = 0

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._users.get(ticket.user, ())

    def clear(self) -> None:
        self._users.clear()
        self.count = 0

    def head(self) -> Ticket:
        """The request that `pop` would take."""
        return next(iter(next(iter(self._users.values()))))

    def push(self, ticket: Ticket) -> None:
        tickets = self._users.get(ticket.user)
        if tickets is None:
            tickets = self._users[ticket.user] = OrderedDict()
        tickets[ticket] = None
        self.count += 1

    def put_back(self, ticket: Ticket) -> None:
        """To the head of its user's requests, and its user to the head of the users."""
        self.push(ticket)
        self._users[ticket.user].move_to_end(ticket, last=False)
        self._users.move_to_end(ticket.user, last=False)

    def pop(self) -> Ticket:
        user, tickets = self._users.popitem(last=False)
        ticket, _ = tickets.popitem(last=False)
        self.count -= 1
        if tickets:
            self._users[user] = tickets
        return ticket

    def remove(self, ticket: Ticket) -> None:
        tickets = self._users[ticket.user]
        del tickets[ticket]
        self.count -= 1
        if not tickets:
            del self._users[ticket.user]
