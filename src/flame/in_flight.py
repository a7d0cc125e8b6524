"""One admitted request on its way: features, queue, answer. Whatever happens, it ends in exactly one answer."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np

from flame.engine.spec import ModelSpec
from flame.errors import ExecutionError, FlameError, RequestCancelled, ShuttingDown
from flame.features.pipeline import FeaturePipeline
from flame.metrics import Metrics
from flame.orchestrator.outcome import Outcome, Scored
from flame.orchestrator.permit import Permit
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.ticket import Ticket
from flame.records import Features, RankRequest, RankResponse, Scores
from flame.statistics import Ledger, Marks

_log = logging.getLogger(__name__)


class Answer(Future[RankResponse]):
    """The response to come. `cancel` ends it at once for who waits, and drops the work that has not begun."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = threading.Event()

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self.dropped.set()
        return cancelled


@dataclass(frozen=True, slots=True)
class Station:
    """What every request of a ranker passes: its parts, and what an answer says of the model."""

    spec: ModelSpec
    backend: str
    tasks: tuple[str, ...]
    features: FeaturePipeline
    orchestrator: Orchestrator
    ledger: Ledger
    metrics: Metrics


class InFlight:
    """A request with its permit, from `gather` on, which is called once."""

    def __init__(self, station: Station, request: RankRequest, permit: Permit, began: float) -> None:
        """`began` is when the request came, on the clock of `time.monotonic`."""
        self.answer = Answer()
        self._station = station
        self._request = request
        self._permit = permit
        self._features: Features | None = None
        self._marks = Marks(began, began, began)

    def gather(self) -> None:
        """The first half of the path, up to the queue; waits for the feature store."""
        began, admitted = self._marks.began, time.monotonic()
        request = self._request
        try:
            if self.answer.dropped.is_set():
                raise RequestCancelled("the client went away before the work was started")
            self._features = self._station.features.gather(request)
            self._marks = Marks(began, admitted, time.monotonic())
            ticket = self._station.orchestrator.submit(
                self._features,
                self._respond,
                user=request.user,
                priority=request.priority,
                deadline=request.deadline,
                cancelled=self.answer.dropped,
                request_id=request.request_id,
            )
        except BaseException as error:
            try:
                self._give_back()
            finally:
                self._fail(error)
        else:
            self.answer.add_done_callback(partial(_withdraw, self._station.orchestrator, ticket))

    def _respond(self, outcome: Outcome) -> None:
        """The second half, on the thread that ends the request, mostly that of its last launch: without a hand-over."""
        try:
            features = self._features
            assert features is not None
            self._give_back(outcome)
            if isinstance(outcome, FlameError):
                self._fail(outcome)
                return
            response = self._response(outcome, features)
        except BaseException as error:
            self._fail(error)
        else:
            self._station.ledger.succeeded(response)
            if response.truncated:
                self._station.metrics.truncated.inc()
            if self.answer.set_running_or_notify_cancel():
                self.answer.set_result(response)

    def _give_back(self, outcome: Outcome | None = None) -> None:
        lost = isinstance(outcome, FlameError) and outcome.features_lost
        try:
            if self._features is not None and not lost:
                self._station.features.release(self._features)
        finally:
            self._permit.release(outcome)

    def _response(self, scored: Scored, features: Features) -> RankResponse:
        station, request = self._station, self._request
        scores = _finite(scored.scores)
        tasks = request.tasks or station.tasks
        if tasks != station.tasks:
            scores = scores.take([station.tasks.index(task) for task in tasks], axis=1)
        return RankResponse(
            scores=scores,
            tasks=tasks,
            model=station.spec.name,
            version=station.spec.version,
            backend=station.backend,
            counts=features.counts,
            times=self._marks.times(scored.queue_us, scored.compute_us, time.monotonic()),
            launches=scored.launches,
            history_reused=scored.reused,
            request_id=request.request_id,
            truncated=self._permit.truncated,
        )

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, FlameError):
            _log.error("a request failed", exc_info=error)
        self._station.ledger.failed((time.monotonic() - self._marks.began) * 1e6, cut=isinstance(error, ShuttingDown))
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)


def _withdraw(orchestrator: Orchestrator, ticket: Ticket, answer: Future[RankResponse]) -> None:
    """A client who has gone leaves the queue at once, on the thread that says so."""
    if answer.cancelled():
        orchestrator.withdraw(ticket)


def _finite(scores: Scores) -> Scores:
    """`scores`, unless the model gave a candidate no number: such an answer must not look like a ranking."""
    bad = scores.size - np.count_nonzero(np.isfinite(scores))
    if bad:
        raise ExecutionError(
            f"the model gave {bad} of {scores.size} scores that are not finite; check its weights with `flame validate`"
        )
    return scores
