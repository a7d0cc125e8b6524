"""One accepted request on its way through its launches, and the answer it ends in."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flame.errors import DeadlineExceeded, FlameError, RequestCancelled
from flame.layout import PackedViews
from flame.orchestrator.plan import Demand
from flame.orchestrator.states import Held
from flame.records import Features, Scores


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores `[candidates, tasks]` of one request; microseconds before its first launch, and from there to its end.

    `reused` says that they were scored against a history that was encoded for another request.
    """

    scores: Scores
    queue_us: float
    compute_us: float
    launches: int
    reused: bool = False


class Ticket:
    """The mutable side of a request; all but `scores` belongs to the schedule, which changes it under its lock.

    `left` and `running` count launches that have not ended, and those that run now. A ticket with an `error` takes
    part in no further launch, and is answered when nothing of it runs any more: then nobody reads its features.
    `round` counts how often it was planned anew, and `alone` says that it waits for nobody's encode any more. `fresh`
    is the share of its events that had to be encoded, of a history that was.
    """

    __slots__ = (
        "alone",
        "cancelled",
        "deadline",
        "demand",
        "ended",
        "error",
        "features",
        "fresh",
        "future",
        "held",
        "launches",
        "left",
        "reused",
        "round",
        "running",
        "scores",
        "settled",
        "spent_ms",
        "started",
        "submitted",
        "views",
    )

    def __init__(
        self,
        features: Features,
        tasks: int,
        *,
        submitted: float,
        deadline: float | None,
        cancelled: threading.Event | None,
    ) -> None:
        self.features = features
        self.views: PackedViews = features.layout.views(features.words)
        self.demand = Demand(max(features.lengths, default=0), features.layout.candidates)
        self.deadline = deadline
        self.cancelled = cancelled
        self.future: Future[Scored] = Future()
        self.scores: Scores = np.empty((self.demand.candidates, tasks), np.float32)
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
        self.alone = False
        self.error: FlameError | None = None
        self.settled = False
        # Nobody but `answer` may end the future: a caller who gives up sets `cancelled`.
        self.future.set_running_or_notify_cancel()

    def refusal(self, now: float) -> FlameError | None:
        """Why no work should be started for it any more, if there is a reason."""
        if self.cancelled is not None and self.cancelled.is_set():
            return RequestCancelled("the client went away before the work was done")
        if self.deadline is not None and now >= self.deadline:
            late_ms = (now - self.deadline) * 1e3
            return DeadlineExceeded(f"the deadline passed {late_ms:.1f} ms ago, while the request was in the queue")
        return None

    def restart(self) -> None:
        """Takes it out of the launches it was planned for, of which none has begun."""
        assert not self.launches
        assert not self.running
        self.round += 1
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
        self.future.set_result(Scored(self.scores, queue_us, compute_us, self.launches, self.reused))


class Part(NamedTuple):
    """Candidates `[start, stop)` of a ticket in one slot of a launch."""

    ticket: Ticket
    start: int
    stop: int
