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
from functools import cache, lru_cache

from flame.config import OrchestratorConfig
from flame.errors import DeadlineExceeded, QueueFull, RefusedError, ShuttingDown
from flame.metrics import Metrics
from flame.orchestrator.forecast import Forecast
from flame.orchestrator.outcome import Outcome, Scored
from flame.orchestrator.permit import Permit, Place
from flame.orchestrator.profiles import ProfileSet
from flame.records import RankRequest
from flame.schema import InputSchema

_PASSED = "the deadline passed {:.1f} ms before the request came"
_FULL = "{} requests are in flight, as many as orchestrator.max_in_flight allows; try again later"
_NEAR = "the deadline is in {:.2f} ms and an answer for {} candidates is expected in {:.2f} ms; allow more time"
_NEAR_AND_BUSY = _NEAR + ", or try again when the {} requests in flight are done"


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
        self._refused = cache(lambda kind, priority: metrics.refused.labels("admission", kind, priority))
        metrics.in_flight.set_function(lambda: self.in_flight)
        self._clock = clock
        # To enter a condition costs three times as much as to enter its lock; only who drains waits.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._capacity = lru_cache(schema.max_history + 1)(schema.sequence_capacity)
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
        with self._lock:
            decision = self._decide(request)
        if isinstance(decision, Permit):
            return decision
        self._refused(decision.kind, request.priority).inc()
        try:
            raise decision
        finally:
            del decision  # Its traceback holds this frame: the two would be garbage that only the collector finds.

    def drain(self, timeout: float) -> int:
        """Refuses all from now on and waits at most `timeout` seconds for those in flight; how many are left."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: self.in_flight == 0, timeout)
            return self.in_flight

    def _decide(self, request: RankRequest) -> Permit | RefusedError:
        """A permit that is counted in, or why there is none. Under the lock, as all that it calls."""
        if self._draining:
            return ShuttingDown("the server is shutting down and takes no new requests; use another one")
        now, candidates = self._clock(), len(request.candidates)
        left_ms = math.inf if request.deadline is None else (request.deadline - now) * 1e3
        if left_ms <= 0:
            return DeadlineExceeded(_PASSED, -left_ms)
        place = self._place(request, candidates, now)
        self._forecast.came(place)
        fitting = candidates
        if left_ms < math.inf and (latest_ms := self._forecast.fair_ms(place)) > left_ms:
            if self._truncates:
                place, fitting, latest_ms = self._truncated(request, place, latest_ms, left_ms)
            if latest_ms > left_ms:
                busy = self._forecast.crowd.total
                return DeadlineExceeded(_NEAR_AND_BUSY if busy else _NEAR, left_ms, fitting, latest_ms, busy)
        if (before := self._forecast.crowd.before(request.priority)) >= self._limit:
            return QueueFull(_FULL, before)
        self._forecast.enter(place)
        return Permit(place, fitting, fitting < candidates, self._leave)

    def _truncated(
        self, request: RankRequest, place: Place, latest_ms: float, left_ms: float
    ) -> tuple[Place, int, float]:
        """The place of `request` with as many of its candidates as can be answered in time, else with the fewest; how
        many those are, and in how many milliseconds all but a few such requests are answered."""
        now, asked = place.entered, len(request.candidates)
        tier = self._profiles.tier(self._capacity(self._events(request)))
        fewer = asked
        for fewer in tier.fewer(asked):
            place = self._place(request, fewer, now)
            latest_ms = self._forecast.latest_ms(place)
            if latest_ms <= left_ms:
                break
        return place, fewer, latest_ms

    def _place(self, request: RankRequest, candidates: int, now: float) -> Place:
        cost_ms = self._profiles.predict(self._capacity(self._events(request)), candidates)
        return self._forecast.place(request.user, request.priority, cost_ms, now)

    def _events(self, request: RankRequest) -> int:
        """A history that is still in the store is taken to be as long as it may be."""
        return self._schema.max_history if request.history is None else len(request.history.items)

    def _leave(self, permit: Permit, outcome: Outcome | None) -> None:
        with self._lock:
            if not permit.held:
                return
            permit.held = False
            if isinstance(outcome, Scored):
                self._forecast.answered(permit.place, outcome, self._clock())
            elif isinstance(outcome, DeadlineExceeded):
                self._forecast.missed(permit.place, self._clock())
            self._forecast.leave(permit.place)
            if self._draining:
                self._changed.notify_all()
