"""Who is let in: a permit before any work, or a refusal at once.

A request is refused when as many are in flight as the server takes, when its deadline has passed, when it would pass
before the work ahead of it and its own are done, and when the server drains.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from flame.config import OrchestratorConfig
from flame.errors import DeadlineExceeded, QueueFull, ShuttingDown
from flame.metrics import Metrics
from flame.orchestrator.profiles import ProfileSet
from flame.records import RankRequest
from flame.schema import InputSchema

_WEIGHT = 0.05
"""Weight of the newest observation in the correction of predicted costs."""


class Permit:
    """The right of one request to be worked on. `release` gives it back, once; as a context manager, at its end."""

    def __init__(self, admission: Admission, cost_ms: float) -> None:
        self.cost_ms = cost_ms
        self.held = True
        self._admission = admission

    def release(self) -> None:
        """Gives the permit back; the second call and later ones do nothing. Any thread."""
        self._admission._leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class Admission:
    """Counts the requests in flight and the work they stand for. Every method may be called from any thread."""

    def __init__(self, schema: InputSchema, profiles: ProfileSet, config: OrchestratorConfig, metrics: Metrics) -> None:
        self._schema = schema
        self._profiles = profiles
        self._limit = config.max_in_flight
        self._executors = config.executors
        self._gauge = metrics.in_flight
        self._changed = threading.Condition()
        self._in_flight = 0
        self._work_ms = 0.0
        self._correction = 1.0
        self._observations = 0
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Requests admitted and not yet released."""
        return self._in_flight

    @property
    def correction(self) -> float:
        """How many milliseconds a predicted millisecond of device time turned out to be, lately."""
        return self._correction

    def admit(self, request: RankRequest) -> Permit:
        """A permit for `request`; does not wait. Raises `ShuttingDown`, `DeadlineExceeded` or `QueueFull`."""
        permit = Permit(self, self._predict(request))
        with self._changed:
            if self._draining:
                raise ShuttingDown("the server is shutting down and takes no new requests; use another one")
            self._check_deadline(request.deadline, permit.cost_ms)
            if self._in_flight >= self._limit:
                raise QueueFull(
                    f"{self._in_flight} requests are in flight, as many as orchestrator.max_in_flight allows; "
                    f"try again later"
                )
            self._in_flight += 1
            self._work_ms += permit.cost_ms
            self._gauge.set(self._in_flight)
        return permit

    def observe(self, predicted_ms: float, spent_ms: float) -> None:
        """Learns from an answered request what predictions are worth: its share of device time against `predict`."""
        with self._changed:
            self._observations += 1
            weight = max(_WEIGHT, 1 / (1 + self._observations))
            self._correction += weight * (spent_ms / predicted_ms - self._correction)

    def drain(self, timeout: float) -> int:
        """Refuses all from now on and waits at most `timeout` seconds for those in flight; how many are left."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: self._in_flight == 0, timeout)
            return self._in_flight

    def _predict(self, request: RankRequest) -> float:
        """Milliseconds of device time; a history that is still in the store is taken to be as long as it may be."""
        events = self._schema.max_history if request.history is None else len(request.history.items)
        return self._profiles.predict(self._schema.sequence_capacity(events), len(request.candidates))

    def _check_deadline(self, deadline: float | None, cost_ms: float) -> None:
        if deadline is None:
            return
        left_ms = (deadline - time.monotonic()) * 1e3
        if left_ms <= 0:
            raise DeadlineExceeded(f"the deadline passed {-left_ms:.1f} ms before the request came")
        finish_ms = (self._work_ms / self._executors + cost_ms) * self._trusted_correction()
        if finish_ms > left_ms:
            raise DeadlineExceeded(
                f"the deadline is in {left_ms:.1f} ms and an answer is expected in {finish_ms:.1f} ms; "
                f"allow more time, or try again when {self._in_flight} requests in flight are done"
            )

    def _trusted_correction(self) -> float:
        """An idle server trusts no bad experience: were all refused on its account, nothing would ever correct it."""
        return self._correction if self._in_flight else min(self._correction, 1.0)

    def _leave(self, permit: Permit) -> None:
        with self._changed:
            if not permit.held:
                return
            permit.held = False
            self._in_flight -= 1
            # An empty server has no work by definition; sums of floats would drift.
            self._work_ms = self._work_ms - permit.cost_ms if self._in_flight else 0.0
            self._gauge.set(self._in_flight)
            self._changed.notify_all()
