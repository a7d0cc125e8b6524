"""Who is let in: a permit before any work, or a refusal at once.

A request is refused when as many are in flight as the server takes, when its deadline has passed, when it would pass
before the work ahead of it and its own are done, and when the server drains. With `orchestrator.overload=truncate`, a
request whose deadline is too near for all of its candidates is let in with as many of them as can be scored.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from flame.config import OrchestratorConfig
from flame.errors import DeadlineExceeded, QueueFull, RefusedError, ShuttingDown
from flame.metrics import Metrics
from flame.orchestrator.forecast import Forecast
from flame.orchestrator.lane import Place
from flame.orchestrator.profiles import ProfileSet
from flame.orchestrator.ticket import Outcome, Scored
from flame.records import RankRequest
from flame.schema import InputSchema


class Permit:
    """The right of one request to be worked on, for its first `candidates` candidates: all, unless it is `truncated`.

    `release` gives it back, once; as a context manager, at its end.
    """

    def __init__(self, admission: Admission, place: Place, candidates: int, asked: int) -> None:
        self.place = place
        self.candidates = candidates
        self.truncated = candidates < asked
        self.held = True
        self._admission = admission

    def release(self) -> None:
        """Gives the permit back; the second call and later ones do nothing. Any thread."""
        self._admission._leave(self)

    def learn(self, outcome: Outcome) -> None:
        """Lets later predictions learn from what became of the request, which has ended. Called before `release`."""
        self._admission._learn(self.place, outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class Admission:
    """Counts the requests in flight and the work they stand for. Every method may be called from any thread.

    `clock` tells the time that deadlines are in.
    """

    def __init__(
        self,
        schema: InputSchema,
        profiles: ProfileSet,
        config: OrchestratorConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schema = schema
        self._profiles = profiles
        self._limit = config.max_in_flight
        self._truncates = config.overload == "truncate"
        self._metrics = metrics
        metrics.in_flight.set_function(lambda: self.in_flight)
        self._clock = clock
        self._changed = threading.Condition()
        self._forecast = Forecast(config.executors)
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Requests admitted and not yet released."""
        return self._forecast.crowd.total

    @property
    def correction(self) -> float:
        """How many milliseconds a predicted millisecond of device time turned out to be, lately."""
        return self._forecast.correction

    def admit(self, request: RankRequest) -> Permit:
        """A permit for `request`; does not wait. Raises `ShuttingDown`, `DeadlineExceeded` or `QueueFull`."""
        with self._changed:
            try:
                permit = self._permit(request)
            except RefusedError as error:
                self._metrics.refused.labels("admission", error.kind, request.priority).inc()
                raise
            self._forecast.enter(permit.place)
        return permit

    def drain(self, timeout: float) -> int:
        """Refuses all from now on and waits at most `timeout` seconds for those in flight; how many are left."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: self.in_flight == 0, timeout)
            return self.in_flight

    def _permit(self, request: RankRequest) -> Permit:
        if self._draining:
            raise ShuttingDown("the server is shutting down and takes no new requests; use another one")
        place, candidates = self._fitting(request)
        before = self._forecast.crowd.before(request.priority)
        if before >= self._limit:
            raise QueueFull(
                f"{before} requests are in flight, as many as orchestrator.max_in_flight allows; try again later"
            )
        return Permit(self, place, candidates, len(request.candidates))

    def _fitting(self, request: RankRequest) -> tuple[Place, int]:
        """The place of a request that can be answered in time, and for how many of its candidates."""
        now, candidates = self._clock(), len(request.candidates)
        left_ms = math.inf if request.deadline is None else (request.deadline - now) * 1e3
        if left_ms <= 0:
            raise DeadlineExceeded(f"the deadline passed {-left_ms:.1f} ms before the request came")
        whole = self._place(request, candidates, now)
        self._forecast.came(whole)
        latest_ms = 0.0 if left_ms == math.inf else self._forecast.fair_ms(whole)
        if latest_ms <= left_ms:
            return whole, candidates
        fewer = candidates
        for fewer in self._profiles.tier(self._events(request)).fewer(candidates) if self._truncates else ():
            part = self._place(request, fewer, now)
            latest_ms = self._forecast.latest_ms(part)
            if latest_ms <= left_ms:
                return part, fewer
        busy = f", or try again when the {self.in_flight} requests in flight are done" if self.in_flight else ""
        raise DeadlineExceeded(
            f"the deadline is in {left_ms:.2f} ms and an answer for {fewer} candidates is expected in "
            f"{latest_ms:.2f} ms; allow more time{busy}"
        )

    def _events(self, request: RankRequest) -> int:
        """A history that is still in the store is taken to be as long as it may be."""
        events = self._schema.max_history if request.history is None else len(request.history.items)
        return self._schema.sequence_capacity(events)

    def _place(self, request: RankRequest, candidates: int, now: float) -> Place:
        cost_ms = self._profiles.predict(self._events(request), candidates)
        return self._forecast.place(request.user, request.priority, cost_ms, now)

    def _learn(self, place: Place, outcome: Outcome) -> None:
        with self._changed:
            if isinstance(outcome, Scored):
                self._forecast.answered(place, outcome, self._clock())
            elif isinstance(outcome, DeadlineExceeded):
                self._forecast.missed(place, self._clock())

    def _leave(self, permit: Permit) -> None:
        with self._changed:
            if not permit.held:
                return
            permit.held = False
            self._forecast.leave(permit.place)
            if self._draining:
                self._changed.notify_all()
