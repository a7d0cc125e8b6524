"""The kinds of run one after the other, each for all policies in turns: a slow minute of the machine hits all alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from msgspec.structs import replace

from flame.bench.distributions import ZipfItems
from flame.bench.orchestrator import full_batches, planning, rows, twice
from flame.bench.orchestrator.idle import IdleEngine
from flame.bench.orchestrator.rows import Row
from flame.bench.orchestrator.runs import Run, Runs
from flame.bench.orchestrator.sender import own_microseconds
from flame.bench.orchestrator.setting import OrchestratorBench
from flame.bench.orchestrator.traffic import Traffic
from flame.bench.progress import Show
from flame.config import OrchestratorConfig
from flame.engine.backends.base import Engine
from flame.errors import ConfigError
from flame.metrics import Metrics
from flame.orchestrator.policies import POLICIES
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.profiles import ProfileSet

LEAST_QUEUE = 64
DRAWN = 60
"""Launches of an executor that are kept for the plot, at most, from the middle of a saturated run."""

_ALONE = "engine alone"
_ZIPF_SAMPLES = 2**16

Measure = Callable[[], dict[str, Any]]


class Phases:
    """Everything on one engine. `drawn` are launches of the saturated runs by policy, filled as `rows` goes on."""

    def __init__(
        self, bench: OrchestratorBench, settings: OrchestratorConfig, engine: Engine, traffic: Traffic, show: Show
    ) -> None:
        self._bench, self._settings, self._engine, self._traffic, self._show = bench, settings, engine, traffic, show
        widest = max(profile.users for profile in engine.profiles)
        self._depth = min(settings.max_in_flight, max(LEAST_QUEUE, 8 * settings.executors * widest))
        self._queued = f"saturated, {self._depth} in flight"
        self.drawn: dict[str, list[dict[str, Any]]] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, in the order in which a reader wants them. Raises `ConfigError` where nothing is answered."""
        with self._all_runs(self._engine) as runs:
            capacity = self._capacity(runs)
            yield from capacity.values()
            yield from self._open(runs, capacity)
            if "cost" in runs:
                yield from self._of_cost(runs["cost"], capacity["cost"])
        with self._all_runs(IdleEngine(self._engine)) as runs:
            own = {"generator_us": own_microseconds(self._traffic)}
            found = self._in_turns({policy: self._overhead(policy, one) for policy, one in runs.items()})
            yield from (row | own for row in found.values())
        yield from self._planning()

    @contextmanager
    def _all_runs(self, engine: Engine) -> Iterator[dict[str, Runs]]:
        """An orchestrator for each policy; those that have no work wait and take no time from the others."""
        with ExitStack() as started:
            runs = {}
            for policy in self._bench.policies:
                orchestrator = Orchestrator(engine, replace(self._settings, policy=policy), Metrics())
                started.callback(orchestrator.close)
                runs[policy] = Runs(self._bench, self._traffic, orchestrator, engine.device, self._show)
            yield runs

    def _in_turns(self, measures: Mapping[str, Measure]) -> dict[str, dict[str, Any]]:
        """The rows of all, measured in turns, every second round in the opposite order: medians of the rounds."""
        found: dict[str, list[Row]] = {name: [] for name in measures}
        names = list(measures)
        for turn in range(self._bench.rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                found[name].append(measures[name]())
        return {name: rows.median(own) for name, own in found.items()}

    def _capacity(self, runs: Mapping[str, Runs]) -> dict[str, dict[str, Any]]:
        """By policy, and the engine alone."""
        found = self._in_turns(
            {_ALONE: self._alone} | {policy: self._saturated(policy, one) for policy, one in runs.items()}
        )
        for policy in runs:
            if not found[policy]["achieved_rate"]:
                raise ConfigError(
                    f"{policy}: nothing was answered in {self._bench.seconds:g} s "
                    f"({found[policy]['errors'] or 'no errors'}); measure longer, or a smaller model"
                )
        return found

    def _alone(self) -> dict[str, Any]:
        executors, bench = self._settings.executors, self._bench
        self._show(_ALONE, 0, 1)
        rate = full_batches.pairs_per_s(self._engine, self._traffic, executors, bench.seconds, bench.seed)
        self._show(_ALONE, 1, 1)
        return {"what": _ALONE, "policy": "", "load": f"{executors} threads, full launches", "pairs_per_s": rate}

    def _saturated(self, policy: str, runs: Runs) -> Measure:
        def measure() -> dict[str, Any]:
            seen = runs.closed(f"{policy}, capacity", self._depth)
            self.drawn[policy] = _drawn(seen)
            return rows.of_run("capacity", policy, self._queued, seen, self._bench.deadline_ms)

        return measure

    def _open(self, runs: Mapping[str, Runs], capacity: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        """At a share of the first policy's capacity and of its own; the first has one run for both."""
        first, share = self._bench.policies[0], self._bench.share
        common, own = f"{share:.0%} of {first}{rows.SAME_LOAD}", f"{share:.0%} of {rows.OWN_LOAD}"
        rates = {policy: share * capacity[policy]["achieved_rate"] for policy in runs}
        same = self._in_turns({policy: self._at(policy, common, rates[first], one) for policy, one in runs.items()})
        yield from same.values()
        yield same[first] | {"load": own}
        others = {policy: self._at(policy, own, rates[policy], one) for policy, one in runs.items() if policy != first}
        yield from self._in_turns(others).values()

    def _at(self, policy: str, load: str, rate: float, runs: Runs) -> Measure:
        deadline_ms = self._bench.deadline_ms
        return lambda: rows.of_run("open loop", policy, load, runs.open(f"{policy}, {load}", rate), deadline_ms)

    def _of_cost(self, runs: Runs, capacity: Row) -> Iterator[dict[str, Any]]:
        """What is asked of planning by cost only."""
        yield from self._in_turns({"overload": self._overload(runs, capacity), "zipf": self._zipf(runs)}).values()
        yield from twice.rows(self._engine, runs.orchestrator, self._traffic, self._bench.seed)

    def _overload(self, runs: Runs, capacity: Row) -> Measure:
        times, deadline_ms = self._bench.overload, self._bench.deadline_ms
        load = f"{times:g} x its own capacity, deadline {deadline_ms:g} ms"

        def measure() -> dict[str, Any]:
            seen = runs.open("cost, overload", times * capacity["achieved_rate"], deadline_ms / 1e3)
            return rows.of_overload(load, seen, deadline_ms, capacity)

        return measure

    def _zipf(self, runs: Runs) -> Measure:
        bench = self._bench
        generator = np.random.default_rng([bench.seed, 3])
        sampled = ZipfItems(bench.users, bench.zipf, generator).sample(_ZIPF_SAMPLES, generator)
        users = itertools.cycle(sampled.tolist())
        load = f"{self._queued}, {bench.users} users, zipf {bench.zipf:g}"
        return lambda: rows.of_run(
            "zipf", "cost", load, runs.closed("cost, zipf", self._depth, users), bench.deadline_ms
        )

    def _overhead(self, policy: str, runs: Runs) -> Measure:
        return lambda: rows.of_overhead(
            policy, self._queued, runs.closed(f"{policy}, overhead", self._depth), self._bench.deadline_ms
        )

    def _planning(self) -> Iterator[dict[str, Any]]:
        profiles = ProfileSet(self._engine.spec, self._engine.profiles, self._engine.costs)
        for policy in self._bench.policies:
            taken = planning.microseconds(POLICIES[policy], profiles, self._traffic, self._settings.executors)
            load = f"{planning.QUEUE} in the queue"
            yield {"what": "planner", "policy": policy, "load": load, "us_per_request": taken}


def _drawn(seen: Run) -> list[dict[str, Any]]:
    """Launches from the middle of a run, in milliseconds after the first of them."""
    executors = len({span.executor for span in seen.spans})
    first = max(0, len(seen.spans) // 2 - DRAWN * executors // 2)
    spans = seen.spans[first : first + DRAWN * executors]
    origin = min((span.launched for span in spans), default=0.0)
    return [
        {
            "executor": span.executor,
            "kind": span.kind,
            "begin_ms": round(1e3 * (span.launched - origin), 4),
            "end_ms": round(1e3 * (span.scored - origin), 4),
            "candidates": span.candidates,
            "slots": span.slots,
        }
        for span in spans
    ]
