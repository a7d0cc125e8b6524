"""The orchestrator: executor threads that plan when they are idle, run launches, and answer every request once."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future

from flame.config import OrchestratorConfig
from flame.engine.backends.base import Engine
from flame.errors import ExecutionError, FlameError, InvalidCandidates, QueueFull, ShuttingDown, TooManyCandidates
from flame.metrics import Metrics
from flame.orchestrator.admission import Admission
from flame.orchestrator.executor import Executor
from flame.orchestrator.job import Job
from flame.orchestrator.policies import POLICIES
from flame.orchestrator.profiles import ProfileSet
from flame.orchestrator.reuse import Reuse
from flame.orchestrator.schedule import Schedule
from flame.orchestrator.states import StatePool
from flame.orchestrator.ticket import Scored, Ticket
from flame.records import Features

_log = logging.getLogger(__name__)

_LAST_LAUNCH_S = 5.0
"""How long `close` waits for launches that run, beyond the drain: nothing can interrupt them."""


class Orchestrator:
    """Runs an engine for many requests at a time; used from any thread.

    All memory for launches and states is allocated here, before the first request. The engine stays the caller's: it
    is closed by them, after `close`. `admission` is the gate that callers pass before they gather features.
    """

    def __init__(self, engine: Engine, config: OrchestratorConfig, metrics: Metrics) -> None:
        self.profiles = ProfileSet(engine.spec, engine.profiles, engine.costs)
        self.admission = Admission(engine.spec.input, self.profiles, config, metrics)
        self._tasks = len(engine.spec.tasks)
        self._max_candidates = engine.spec.input.max_candidates
        self._limit = config.max_in_flight
        self._metrics = metrics
        keep = config.keep_states if config.policy == "cost" else 0
        self._states = StatePool(engine, self.profiles, config.executors, keep, metrics)
        reuse = Reuse(self._states, self.profiles, keep, metrics)
        self._schedule = Schedule(self.profiles, reuse, POLICIES[config.policy], config.executors)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._over = threading.Condition(self._lock)
        self._closing = False
        self._stopped = False
        executors = [Executor(engine, self.profiles.profiles) for _ in range(config.executors)]
        self._threads = [
            threading.Thread(target=self._serve, args=(executor,), name=f"flame-executor-{number}", daemon=True)
            for number, executor in enumerate(executors)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        """Whether an executor thread is alive; the engine must not be closed as long as one is."""
        return any(thread.is_alive() for thread in self._threads)

    def submit(
        self, features: Features, *, deadline: float | None = None, cancelled: threading.Event | None = None
    ) -> Future[Scored]:
        """Queues a request; `features` must stay as they are until the future ends, and nobody reads them after that.

        Setting `cancelled` drops what has not begun; cancelling the future itself does nothing. The future raises
        `DeadlineExceeded`, `RequestCancelled`, `ExecutionError` or `ShuttingDown`; `submit` itself `QueueFull`,
        `ShuttingDown`, `InvalidCandidates`, `TooManyCandidates` or `HistoryTooLong`, at once.
        """
        ticket = Ticket(features, self._tasks, submitted=time.monotonic(), deadline=deadline, cancelled=cancelled)
        self._check(ticket)
        with self._lock:
            if self._closing:
                raise ShuttingDown("the server is shutting down and takes no new requests; use another one")
            if self._schedule.alive >= self._limit:
                raise QueueFull(f"{self._limit} requests are in the queue or running; try again later")
            self._schedule.add(ticket)
            self._work.notify()
        return ticket.future

    def close(self, drain_s: float = 0.0) -> int:
        """Takes nothing new, waits at most `drain_s` for what is in the queue, and fails the rest with `ShuttingDown`.

        Returns how many were failed. Launches that run are let finish, for at most 5 more seconds.
        """
        error = ShuttingDown("the server shut down before the request was done; use another one")
        with self._lock:
            self._closing = True
            self._over.wait_for(lambda: not self._schedule.alive, drain_s)
            cut = self._schedule.cut(error)
            self._stopped = True
            self._work.notify_all()
        self._answer()
        limit = time.monotonic() + _LAST_LAUNCH_S
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))
        with self._lock:
            cut += self._schedule.abandon(error)
            self._states.clear()
        self._answer()
        return cut

    def _check(self, ticket: Ticket) -> None:
        if not ticket.demand.candidates:
            raise InvalidCandidates("there are no candidates to score")
        if ticket.demand.candidates > self._max_candidates:
            raise TooManyCandidates(f"{ticket.demand.candidates} candidates; the model takes {self._max_candidates}")
        self.profiles.tier(ticket.demand.events)

    def _serve(self, executor: Executor) -> None:
        """The life of an executor thread."""
        while job := self._next():
            began = time.monotonic()
            error = _run(executor, job)
            with self._lock:
                self._schedule.finish(job, began=began, ended=time.monotonic(), error=error)
            self._count(job)
            self._answer()

    def _next(self) -> Job | None:
        """Waits for work; None when the orchestrator has stopped."""
        while True:
            with self._lock:
                self._work.wait_for(lambda: self._schedule.has_work or self._stopped)
                job = self._schedule.take(time.monotonic())
                self._metrics.queued.set(self._schedule.waiting)
                if self._schedule.has_work:
                    self._work.notify()
                stopped = self._stopped
            self._answer()
            if job or stopped:
                return job

    def _count(self, job: Job) -> None:
        profile, kind = job.launch.profile, job.launch.kind
        self._metrics.launches.labels(str(profile), kind).inc()
        if kind != "encode":
            used = sum(part.stop - part.start for part in job.parts)
            self._metrics.padding.inc(profile.users * profile.candidates - used)

    def _answer(self) -> None:
        """Answers the requests that have ended, outside the lock: what waits for them may call back."""
        with self._lock:
            ended = self._schedule.pop_settled()
            if not self._schedule.alive:
                self._over.notify_all()
        for ticket in ended:
            if ticket.error is None:
                self.admission.observe(self._predict(ticket), ticket.spent_ms)
            ticket.answer()

    def _predict(self, ticket: Ticket) -> float:
        """What the request was expected to cost, knowing by now whether its history was there."""
        demand = ticket.demand
        return self.profiles.predict(demand.events, demand.candidates, encoded=ticket.reused, fresh=ticket.fresh)


def _run(executor: Executor, job: Job) -> FlameError | None:
    """Runs a launch; what the engine raises is logged in full and becomes the error of the requests in it."""
    profile, kind = job.launch.profile, job.launch.kind
    try:
        executor.run(profile, kind, job.parts)
    except Exception as cause:
        _log.exception("launch of %s %s failed for %d requests", profile, kind, len(job.requests()))
        return ExecutionError(
            f"the launch of {profile} ({kind}) failed with {type(cause).__name__}; see the server's log"
        )
    return None
