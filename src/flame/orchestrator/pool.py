"""The orchestrator: executor threads that plan when they are idle, run launches, and answer every request once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

from msgspec.structs import replace

from flame.config import OrchestratorConfig
from flame.engine.backends.base import Engine
from flame.errors import (
    InvalidCandidates,
    QueueFull,
    RequestCancelled,
    ShuttingDown,
    TooManyCandidates,
)
from flame.handover import give_way
from flame.metrics import Metrics
from flame.orchestrator.admission import Admission
from flame.orchestrator.attempt import Abandoned
from flame.orchestrator.books import Books
from flame.orchestrator.core import bind_thread, bound, executors_core
from flame.orchestrator.device import Device
from flame.orchestrator.job import Job
from flame.orchestrator.outcome import Done
from flame.orchestrator.policies import POLICIES
from flame.orchestrator.post import Post
from flame.orchestrator.schedule import Schedule
from flame.orchestrator.supervise import Supervisor, no_executor
from flame.orchestrator.ticket import Ticket
from flame.orchestrator.timeline import Timeline
from flame.records import Features, Priority

_LAST_LAUNCH_S = 5.0
"""How long `close` waits for launches that run, beyond the drain: nothing can interrupt them."""


class Orchestrator:
    """Runs one engine, or one for each of several devices, for many requests at a time; used from any thread.

    Engines are of the same model, backend and profiles, so that it does not matter which runs a request. All memory
    for launches and states is allocated here, before the first request. The engines stay the caller's: they are
    closed by them, after `close`. `admission` is the gate that callers pass before they gather features, `timeline`
    what was done lately.
    """

    def __init__(self, engines: Engine | Sequence[Engine], config: OrchestratorConfig, metrics: Metrics) -> None:
        engines = [engines] if isinstance(engines, Engine) else list(engines)
        spec = engines[0].spec
        devices = [Device.of(engine, config, metrics) for engine in engines]
        self.profiles = devices[0].profiles
        executors = config.executors * len(engines)
        self.admission = Admission(spec.input, self.profiles, replace(config, executors=executors), metrics)
        self.timeline = Timeline(config.timeline_entries)
        self._tasks = len(spec.tasks)
        self._numbers = itertools.count()
        self._max_candidates = spec.input.max_candidates
        self._limit = config.max_in_flight
        company_s = config.company_us / 1e6 if config.policy == "cost" else 0.0
        self._schedule = Schedule(devices, POLICIES[config.policy], company_s)
        metrics.queued.set_function(lambda: self._schedule.waiting)
        names = [engine.device for engine in engines]
        self._books = Books(self.timeline, metrics, names, self.profiles.profiles)
        self._core = executors_core(engines, config)
        self._lock = threading.Lock()
        self._work = [threading.Condition(self._lock) for _ in engines]
        self._over = threading.Condition(self._lock)
        self._closing = False
        self._stopped = False
        places = [(device, engine) for device, engine in enumerate(engines) for _ in range(config.executors)]
        self._supervisor = Supervisor(
            [Post(number, *place, self.profiles.profiles) for number, place in enumerate(places)],
            self._schedule,
            self._lock,
            config.launch_limit_ms / 1e3,
            metrics,
            serve=self._serve,
            answer=self._answer,
            wake=self._wake,
            book=self._books.launched,
        )
        self._supervisor.start()

    @property
    def running(self) -> bool:
        """Whether an executor thread is alive; the engine must not be closed as long as one is."""
        return self._supervisor.running

    @property
    def failed(self) -> Future[None]:
        """Ends when every executor has failed and none could be rebuilt: nothing is served any more."""
        return self._supervisor.failed

    def bind_thread(self) -> None:
        """Keeps the calling thread on the core that executors share, if they do: for threads that hardly do more than
        to submit. They need not change cores then with every hand-over of Python's lock, and call `give_way` between
        two requests."""
        bind_thread(self._core)

    def give_way(self) -> None:
        """Lets an executor go first that has a launch behind it, for a thread that called `bind_thread`."""
        if self._core is not None:
            give_way()

    def check(self) -> None:
        """Raises `EngineFailed` when no executor is left."""
        if not self._supervisor.left:
            raise no_executor()

    def submit(
        self,
        features: Features,
        done: Done,
        *,
        user: int | None = None,
        priority: Priority = "interactive",
        deadline: float | None = None,
        cancelled: threading.Event | None = None,
        request_id: str = "",
    ) -> Ticket:
        """Queues a request; `features` must stay as they are until it ends, and nobody reads them after that, unless it
        ends in an error with `features_lost`: then a launch that was given up may do so at any time.

        `done` is called once with what it ends in: `Scored`, or a `DeadlineExceeded`, `RequestCancelled`,
        `ExecutionError`, `EngineFailed` or `ShuttingDown`; on the thread that ends it, mostly the one that ran its last
        launch, so it should be short. Requests of one `user` take turns with those of others; those without one are as
        of one user. `request_id` names it on the timeline. Setting `cancelled` drops what has not begun, before it
        would begin, and `withdraw`, given the ticket, drops it at once. Raises `QueueFull`, `ShuttingDown`,
        `EngineFailed`, `InvalidCandidates`, `TooManyCandidates` or `HistoryTooLong`; then `done` is not called.
        """
        ticket = Ticket(
            features,
            done,
            tasks=self._tasks,
            submitted=time.monotonic(),
            deadline=deadline,
            cancelled=cancelled,
            number=next(self._numbers),
            request_id=request_id,
            user=user,
            priority=priority,
        )
        self._check(ticket)
        ticket.cost_ms = self.profiles.predict(ticket.demand.events, ticket.demand.candidates)
        with self._lock:
            if self._closing:
                raise ShuttingDown("the server is shutting down and takes no new requests; use another one")
            self.check()
            if (before := self._schedule.before(priority)) >= self._limit:
                raise QueueFull(f"{before} requests are in the queue or running; try again later")
            self._schedule.add(ticket)
            if (device := self._schedule.caller(ticket)) is not None:
                self._work[device].notify()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Ends a request at once, unless a launch of it runs; then, after that. Any thread."""
        with self._lock:
            self._schedule.withdraw(ticket, RequestCancelled("the client went away before the work was done"))
        self._answer()

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
            for work in self._work:
                work.notify_all()
        self._answer()
        self._supervisor.stop(_LAST_LAUNCH_S)
        with self._lock:
            cut += self._schedule.abandon(error)
        self._answer()
        return cut

    def _check(self, ticket: Ticket) -> None:
        if not ticket.demand.candidates:
            raise InvalidCandidates("there are no candidates to score")
        if ticket.demand.candidates > self._max_candidates:
            raise TooManyCandidates(f"{ticket.demand.candidates} candidates; the model takes {self._max_candidates}")

    def _serve(self, post: Post) -> None:
        """The life of an executor's thread: until the orchestrator stops, it is given up, or nothing can be rebuilt."""
        try:
            while post.executor is not None or self._supervisor.rebuild(post):
                with bound(self._core):
                    if not self._run(post):
                        return
        except Abandoned:
            self._supervisor.returned(post)

    def _run(self, post: Post) -> bool:
        """Runs launches as long as there is an executor; False when the orchestrator has stopped."""
        while post.executor is not None:
            job = self._next(post)
            if job is None:
                return False
            self._launch(post, job)
        return True

    def _next(self, post: Post) -> Job | None:
        """Waits for work; None when the orchestrator has stopped."""
        device = post.device
        while True:
            with self._lock:
                now = time.monotonic()
                if not self._schedule.has_work(device) and not self._stopped:
                    patience = self._schedule.patience(now, device)
                    self._work[device].wait_for(lambda: self._schedule.has_work(device) or self._stopped, patience)
                    now = time.monotonic()
                self._mark_queue(now)
                job = self._schedule.take(now, device)
                if job:
                    self._supervisor.launch(post, job, now)
                self._mark_queue(now)
                self._wake()
                stopped = self._stopped
                ended = self._settled()
            self._tell(ended)
            if job or stopped:
                return job

    def _launch(self, post: Post, job: Job) -> None:
        error = post.run(job)
        ended = time.monotonic()
        self._books.launched(post, job, ended, error)
        with self._lock:
            self._schedule.finish(job, began=post.began, ended=ended, error=error)
            self._supervisor.launched(post, error)
            over = self._settled()
        self._tell(over)

    def _wake(self) -> None:
        """Wakes one executor of each device that has something to look at. Under the lock."""
        for device, work in enumerate(self._work):
            if self._schedule.devices[device].idle and self._schedule.has_work(device):
                work.notify()

    def _mark_queue(self, now: float) -> None:
        self.timeline.queued(now, self._schedule.pending, self._schedule.waiting)

    def _answer(self) -> None:
        """Answers the requests that have ended. What they leave behind may be work for an executor that sleeps."""
        with self._lock:
            ended = self._settled()
            self._wake()
        self._tell(ended)

    def _settled(self) -> list[Ticket]:
        """The requests that have ended and are not answered yet, which the caller does. Under the lock."""
        if self._closing and not self._schedule.alive:
            self._over.notify_all()
        return self._schedule.pop_settled()

    def _tell(self, ended: list[Ticket]) -> None:
        """Answers requests, outside the lock: what waits for them may call back."""
        for ticket in ended:
            self._books.answered(ticket)
            ticket.answer()
