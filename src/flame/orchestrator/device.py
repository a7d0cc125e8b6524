"""One device's part of the schedule: its executors, the launches planned for it, and the histories encoded on it.

Launches start as they were planned, but those of batch requests only let others go first. They have the share that
batch requests have in the queue: the next one lets others go first that take its own time divided by `BATCH_SHARE`, and
one more.
"""

from __future__ import annotations

import heapq
import math
from typing import Self

from flame.config import OrchestratorConfig
from flame.engine.backends.base import Engine
from flame.metrics import Metrics
from flame.orchestrator.job import Job
from flame.orchestrator.learning import Ratio
from flame.orchestrator.profiles import ProfileSet
from flame.orchestrator.queue import BATCH_SHARE
from flame.orchestrator.reuse import Reuse
from flame.orchestrator.states import StatePool


class Device:
    """A device as the schedule sees it, which alone changes it. The schedule's lock guards it.

    `executors` can run launches, `idle` of them have none. `waiting` counts launches that are planned and not begun,
    and `work_ms` is what those that are planned and not ended cost, as predicted; `pace` is what predictions turned out
    to be worth. `apiece_ms` is what a request of the last plan costs. `seen` is the state of the queue in which nothing
    was found for it, until `retry` (`time.monotonic`) at the latest.
    """

    def __init__(self, name: str, profiles: ProfileSet, reuse: Reuse, executors: int) -> None:
        self.name = name
        self.profiles = profiles
        self.reuse = reuse
        self.executors = executors
        self.idle = executors
        self.waiting = 0
        self.work_ms = 0.0
        self.pace = Ratio()
        self.apiece_ms = math.inf
        self.seen = -1
        self.retry = math.inf
        self._ready: list[tuple[int, Job]] = []
        self._batch: list[tuple[int, Job]] = []  # ready, too
        self._earned_ms = 0.0

    @classmethod
    def of(cls, engine: Engine, config: OrchestratorConfig, metrics: Metrics) -> Self:
        """That of an engine, with its costs, and room for the histories that are encoded on it."""
        profiles = ProfileSet(engine.spec, engine.profiles, engine.costs)
        keep = config.keep_states if config.policy == "cost" else 0
        states = StatePool(engine, profiles, config.executors, keep, metrics)
        return cls(engine.device, profiles, Reuse(states, profiles, keep, metrics), config.executors)

    @property
    def has_ready(self) -> bool:
        """Whether a planned launch may begin."""
        return bool(self._ready or self._batch)

    @property
    def postponed(self) -> int:
        """How many may begin, but let those with interactive requests go first."""
        return len(self._batch)

    @property
    def yields(self) -> bool:
        """Whether whatever may begin lets interactive requests go first that are not even planned."""
        return bool(self._batch) and not self._ready and not self._due()

    def plan(self, jobs: list[Job]) -> None:
        """Takes in planned launches."""
        self.waiting += len(jobs)
        self.work_ms += sum([self._price(job) for job in jobs])
        for job in jobs:
            if not job.waits:
                self._may_begin(job)

    def hasten(self, job: Job) -> None:
        """An interactive request waits for `job`: it lets nobody go first any more."""
        if job.batch:
            job.batch = False
            entry = job.number, job
            if entry in self._batch:
                self._batch.remove(entry)
                heapq.heapify(self._batch)
                heapq.heappush(self._ready, entry)

    def pop(self) -> Job:
        """The next launch that may begin."""
        self.waiting -= 1
        first = self._batch if self._batch and (not self._ready or self._due()) else self._ready
        return heapq.heappop(first)[1]

    def begun(self, job: Job) -> None:
        """`job` runs: while launches of batch requests may begin too, the others earn them their share."""
        if job.batch:
            self._earned_ms = max(0.0, self._earned_ms - self._price(job))
        elif self._batch:
            self._earned_ms += BATCH_SHARE * self._price(job)

    def unblock(self, job: Job) -> None:
        """`job` has ended, or will never begin: those that wait for it alone may begin."""
        # Without launches there is no work by definition; sums of floats would drift.
        busy = self.waiting or self.idle < self.executors
        self.work_ms = self.work_ms - self._price(job) if busy else 0.0
        for dependent in job.dependents:
            dependent.waits -= 1
            if not dependent.waits:
                self._may_begin(dependent)

    def clear(self) -> None:
        """Forgets all launches that have not begun, and every history."""
        self._ready.clear()
        self._batch.clear()
        self.waiting = 0
        self.work_ms = 0.0
        self.reuse.pool.clear()

    def _may_begin(self, job: Job) -> None:
        heapq.heappush(self._batch if job.batch else self._ready, (job.number, job))

    def _due(self) -> bool:
        """Whether batch requests have waited long enough for their share."""
        return self._earned_ms >= self._price(self._batch[0][1])

    def _price(self, job: Job) -> float:
        return self.profiles.price(job.launch.profile, job.launch.kind)
