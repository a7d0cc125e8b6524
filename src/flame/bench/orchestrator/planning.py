"""Planning alone: microseconds per request of a long queue."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from flame.bench.orchestrator.traffic import Traffic
from flame.orchestrator.plan import Demand, Planner
from flame.orchestrator.profiles import ProfileSet

QUEUE = 256
ROUNDS = 30
MARK_US = 30.0


def microseconds(planner: Planner, profiles: ProfileSet, traffic: Traffic, executors: int) -> float:
    """Median over rounds of the time to plan a queue of `QUEUE` requests with all executors idle, per request."""
    events = max(traffic.lengths)
    queue = [Demand(events, traffic.counts[index % len(traffic.counts)]) for index in range(QUEUE)]
    cut = list(_cut(queue, profiles.widest, executors))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for batch in cut:
            planner(batch, profiles)
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times)) / QUEUE


def _cut(queue: Sequence[Demand], widest: int, executors: int) -> list[Sequence[Demand]]:
    """A fair share of the queue for each executor, no more than a launch holds: fewer than the schedule plans together
    where many wait, so that a request costs no less than it does there."""
    found, first = [], 0
    while first < len(queue):
        share = -(-(len(queue) - first) // executors)
        found.append(queue[first : first + min(share, widest)])
        first += len(found[-1])
    return found
