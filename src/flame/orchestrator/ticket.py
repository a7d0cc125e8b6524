"""One accepted request on its way through its launches, and the answer it ends in."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flame.errors import DeadlineExceeded, FlameError, RequestCancelled
from flame.orchestrator.plan import Demand
from flame.orchestrator.states import Held
from flame.records import Features, Priority, Scores


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores `[candidates, tasks]` of one request; microseconds before its first launch, and from there to its end.

    `reused` says that they were scored against a history that was encoded for another request. `spent_ms` is its share
    of the device time of its launches.
    """

    scores: Scores
    queue_us: float
    compute_us: float
    launches: int
    reused: bool = False
    spent_ms: float = 0.0


class Ticket:
    """The mutable side of a request; all but `scores` belongs to the schedule, which changes it under its lock.

    `left` and `running` count launches that have not ended, and those that run now. A ticket with an `error` takes
    part in no further launch, and is answered when nothing of it runs any more: then nobody reads its features.
    `round` counts how often it was planned anew, and `alone` says that it waits for nobody's encode any more. `device`
    is the place of the one it is planned for, `passed_over` when it was first left for another than one that asked.
    `words_at` and `scores_at` are the addresses of the request's packed words and of its scores. `user`, `priority` and
    `cost_ms`, what it is predicted to cost, say when its turn comes.
    `fresh` is the share of its events that had to be encoded, of a history that was.
    """

    __slots__ = (
        "alone",
        "cancelled",
        "cost_ms",
        "deadline",
        "demand",
        "device",
        "ended",
        "error",
        "features",
        "fresh",
        "future",
        "held",
        "launches",
        "left",
        "number",
        "passed_over",
        "priority",
        "request_id",
        "reused",
        "round",
        "running",
        "scores",
        "scores_at",
        "settled",
        "spent_ms",
        "started",
        "submitted",
        "user",
        "words_at",
    )

    def __init__(
        self,
        features: Features,
        tasks: int,
        *,
        submitted: float,
        deadline: float | None,
        cancelled: threading.Event | None,
        number: int = 0,
        request_id: str = "",
        user: int | None = None,
        priority: Priority = "interactive",
    ) -> None:
        self.number = number
        self.request_id = request_id
        self.features = features
        self.words_at: int = features.words.ctypes.data
        self.demand = Demand(max(features.lengths, default=0), features.layout.candidates)
        self.user = user
        self.priority: Priority = priority
        self.cost_ms = 0.0
        self.deadline = deadline
        self.cancelled = cancelled
        self.future: Future[Scored] = Future()
        self.scores: Scores = np.empty((self.demand.candidates, tasks), np.float32)
        self.scores_at: int = self.scores.ctypes.data
        self.submitted = submitted
        self.started: float | None = None
        self.ended = submitted
        self.left = 0
        self.running = 0
        self.launches = 0
        self.spent_ms = 0.0
        self.held: Held | None = None
        self.reused = False
        self.fresh = 1.0
        self.round = 0
        self.device: int | None = None
        self.passed_over: float | None = None
        self.alone = False
        self.error: FlameError | None = None
        self.settled = False
        # Nobody but `answer` may end the future: a caller who gives up sets `cancelled`.
        self.future.set_running_or_notify_cancel()

    def refusal(self, now: float, takes_ms: float = 0.0) -> FlameError | None:
        """Why no work that takes so long should be started for it any more, if there is a reason."""
        if self.cancelled is not None and self.cancelled.is_set():
            return RequestCancelled("the client went away before the work was done")
        left_ms = math.inf if self.deadline is None else (self.deadline - now) * 1e3
        if left_ms <= 0:
            return DeadlineExceeded(f"the deadline passed {-left_ms:.1f} ms ago, while the request was in the queue")
        if left_ms < takes_ms:
            return DeadlineExceeded(
                f"before its next launch the deadline is in {left_ms:.2f} ms, "
                f"and the launch is expected to take {takes_ms:.1f} ms"
            )
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
        """Ends the future. Called once, without the schedule's lock: callbacks may take any time."""
        if self.error is not None:
            self.future.set_exception(self.error)
            return
        started = self.ended if self.started is None else self.started
        queue_us, compute_us = (started - self.submitted) * 1e6, (self.ended - started) * 1e6
        self.future.set_result(Scored(self.scores, queue_us, compute_us, self.launches, self.reused, self.spent_ms))


class Part(NamedTuple):
    """Candidates `[start, stop)` of a ticket in one slot of a launch."""

    ticket: Ticket
    start: int
    stop: int
