"""Where the time of requests goes, and what a ranker has done so far: for people, protocols and metrics."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from flame.metrics import Metrics
from flame.records import RankResponse, StageTimes

STAGES = ("admission", "features", "queue", "compute", "respond")


class Marks(NamedTuple):
    """Points of `time.monotonic()` on the way of one request: let in, and ready for the model."""

    began: float
    admitted: float
    gathered: float

    def times(self, queue_us: float, compute_us: float, now: float) -> StageTimes:
        """The stages of a request that is over now; `respond` is what the others leave of the total."""
        admission, features = (self.admitted - self.began) * 1e6, (self.gathered - self.admitted) * 1e6
        total = (now - self.began) * 1e6
        respond = total - admission - features - queue_us - compute_us
        return StageTimes(admission, features, queue_us, compute_us, respond, total)


@dataclass(slots=True)
class Statistics:
    """Sums over the requests that were admitted and have ended; times in microseconds.

    `succeeded` ones took `times`; `failed` ones, those refused after admission or cancelled among them, took
    `failed_us`. `degraded` ones succeeded with features that were stale, missing or unknown, `reused` ones with a
    history that was encoded for another. `last_answer` is seconds since 1970, 0 before the first.
    """

    succeeded: int = 0
    failed: int = 0
    degraded: int = 0
    pairs: int = 0
    launches: int = 0
    reused: int = 0
    times: StageTimes = field(default_factory=lambda: StageTimes(0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    failed_us: float = 0.0
    last_answer: float = 0.0


class Ledger:
    """Books the end of every request; any thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._stages = [metrics.stage.labels(stage) for stage in STAGES]
        self._lock = threading.Lock()
        self._sums = Statistics()
        self.cut = 0
        """Requests that were cut off by the end of the server."""

    def succeeded(self, response: RankResponse) -> None:
        times, candidates = response.times, len(response.scores)
        self._metrics.pairs.inc(candidates)
        self._metrics.candidates.observe(candidates)
        self._metrics.request.observe(times.total / 1e6)
        for name, histogram in zip(STAGES, self._stages, strict=True):
            histogram.observe(getattr(times, name) / 1e6)
        with self._lock:
            sums = self._sums
            sums.succeeded += 1
            sums.degraded += response.counts.degraded
            sums.pairs += candidates
            sums.launches += response.launches
            sums.reused += response.history_reused
            sums.times = _added(sums.times, times)
            sums.last_answer = time.time()

    def failed(self, spent_us: float, *, cut: bool = False) -> None:
        with self._lock:
            self.cut += cut
            self._sums.failed += 1
            self._sums.failed_us += spent_us
            self._sums.last_answer = time.time()

    def snapshot(self) -> Statistics:
        """A copy that nobody changes any more."""
        with self._lock:
            return replace(self._sums)


def _added(one: StageTimes, other: StageTimes) -> StageTimes:
    return StageTimes(
        one.admission + other.admission,
        one.features + other.features,
        one.queue + other.queue,
        one.compute + other.compute,
        one.respond + other.respond,
        one.total + other.total,
    )
