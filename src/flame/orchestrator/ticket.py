"""One accepted request on its way through its launches, and the answer it ends in."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

import numpy as np

from flame.errors import DeadlineExceeded, FlameError, RequestCancelled
from flame.orchestrator.outcome import Done, Outcome, Scored
from flame.orchestrator.plan import Demand
from flame.orchestrator.states import Held
from flame.records import Features, Priority, Scores

_log = logging.getLogger(__name__)

_PASSED = "the deadline passed {:.1f} ms ago, while the request was in the queue"
_NEAR = "before its next launch the deadline is in {:.2f} ms, and the launch is expected to take {:.1f} ms"


class Ticket:
    """The mutable side of a request; all but `scores` belongs to the schedule, which changes it under its lock.

    `done` is told the outcome. `left` and `running` count launches that have not ended, and those that run now. A
    ticket with an `error` takes part in no further launch, and is answered when nothing of it runs any more, or what
    runs was given up. `round` counts how often it was planned anew, and `alone` says that it waits for nobody's encode
    any more. `device` is the place of the one it is planned for, `passed_over` when it was first left for another than
    one that asked. `user`, `priority` and `cost_ms`, what it is predicted to cost, say when its turn comes. `fresh` is
    the share of its events that had to be encoded, of a history that was.
    """

    # Defaults of the class, since most requests change few of them: setting each costs time with every request.
    cost_ms = 0.0
    started: float | None = None
    left = 0
    running = 0
    launches = 0
    spent_ms = 0.0
    held: Held | None = None
    reused = False
    fresh = 1.0
    round = 0
    device: int | None = None
    passed_over: float | None = None
    alone = False
    error: FlameError | None = None
    settled = False

    def __init__(
        self,
        features: Features,
        done: Done,
        *,
        tasks: int,
        submitted: float,
        deadline: float | None = None,
        cancelled: threading.Event | None = None,
        number: int = 0,
        request_id: str = "",
        user: int | None = None,
        priority: Priority = "interactive",
    ) -> None:
        self.number = number
        self.request_id = request_id
        self.features = features
        self.done = done
        self.demand = Demand(max(features.lengths, default=0), features.layout.candidates)
        # By launches on several threads, each its own rows: so it is there before the first of them.
        self.scores: Scores = np.empty((self.demand.candidates, tasks), np.float32)
        self.user = user
        self.priority: Priority = priority
        self.deadline = deadline
        self.cancelled = cancelled
        self.submitted = submitted
        self.ended = submitted

    def refusal(self, now: float, takes_ms: float = 0.0) -> FlameError | None:
        """Why no work that takes so long should be started for it any more, if there is a reason."""
        if self.cancelled is not None and self.cancelled.is_set():
            return RequestCancelled("the client went away before the work was done")
        if self.deadline is None:
            return None
        left_ms = (self.deadline - now) * 1e3
        if left_ms <= 0:
            return DeadlineExceeded(_PASSED, -left_ms)
        if left_ms < takes_ms:
            return DeadlineExceeded(_NEAR, left_ms, takes_ms)
        return None

    def restart(self) -> None:
        """Takes it out of the launches it was planned for, of which none has begun."""
        assert not self.launches
        assert not self.running
        self.round += 1
        self.device = None
        self.left = 0
        self.reused = False
        self.fresh = 1.0
        self.alone = True

    def answer(self) -> None:
        """Tells the outcome. Called once, without the schedule's lock: what is told may take any time."""
        outcome = self.error or self._scored()
        # Who is told most likely holds this ticket: let go, the two are no garbage that holds each other.
        done = self.done
        self.done = _told
        try:
            done(outcome)
        except BaseException:  # an executor's thread goes on, whoever waited for it
            _log.exception("what waited for request %d failed", self.number)

    def _scored(self) -> Scored:
        started = self.ended if self.started is None else self.started
        queue_us, compute_us = (started - self.submitted) * 1e6, (self.ended - started) * 1e6
        return Scored(self.scores, queue_us, compute_us, self.launches, self.reused, self.spent_ms)


def _told(outcome: Outcome) -> None:
    raise AssertionError("a request was told a second outcome")


class Part(NamedTuple):
    """Candidates `[start, stop)` of a ticket in one slot of a launch, as it was in the ticket's `round` of planning."""

    ticket: Ticket
    start: int
    stop: int
    round: int = 0

    @property
    def counts(self) -> bool:
        """Whether the ticket still takes part: one with an error, or that was planned anew, does not."""
        return not self.ticket.error and self.ticket.round == self.round
