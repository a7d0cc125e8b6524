"""`flame bench orchestrator`, from the settings to the rows: one engine, and one policy after the other on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from msgspec.structs import asdict, replace

from flame.bench.distributions import Choice, ZipfItems
from flame.bench.orchestrator import full_batches, planning, rows, twice
from flame.bench.orchestrator.idle import IdleEngine
from flame.bench.orchestrator.marks import marks
from flame.bench.orchestrator.rows import COLUMNS
from flame.bench.orchestrator.runs import Run, Runs
from flame.bench.orchestrator.sender import own_microseconds
from flame.bench.orchestrator.setting import OrchestratorBench
from flame.bench.orchestrator.traffic import Traffic
from flame.bench.progress import Show
from flame.config import Config, OrchestratorConfig
from flame.engine.backends.base import Engine
from flame.engine.build import build
from flame.engine.costs import measure_cost
from flame.engine.machine import usable_cores
from flame.engine.package import load
from flame.engine.spec import ModelSpec, Profile
from flame.errors import ConfigError
from flame.metrics import Metrics
from flame.orchestrator.policies import POLICIES
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.profiles import default_profiles
from flame.ranker import launch_threads

LEAST_QUEUE = 64
DRAWN = 60
"""Launches of a saturated executor that the document keeps for the plot, at most, from the middle of the run."""

_ZIPF_SAMPLES = 2**16


def run(bench: OrchestratorBench, config: Config, show: Show) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of the run, the marks among them. Raises what is wrong with settings, model or machine."""
    if config.orchestrator.timeline_entries < 8 * twice.PAIRS:
        raise ConfigError("flame bench orchestrator reads the timeline; orchestrator.timeline_entries is too small")
    package = load(bench.model, allow_code=config.engine.allow_code)
    traffic = Traffic(package.spec, bench.history, bench.candidates, bench.distinct, bench.seed)
    shapes = _profiles(package.spec, bench, config.orchestrator)
    engine = build(package, config.engine, shapes, threads=launch_threads(config), progress=show)
    try:
        # What an artifact remembers was measured in another hour, and planning would be blamed for it.
        engine.costs = {profile: measure_cost(engine, profile) for profile in engine.profiles}
        measured = _Bench(bench, config.orchestrator, engine, traffic, show)
        found = [dict.fromkeys(COLUMNS) | row for row in measured.rows()]
    finally:
        engine.close()
    return found, _facts(bench, config, engine) | {"marks": marks(found), "launches": measured.drawn}


def _profiles(spec: ModelSpec, bench: OrchestratorBench, settings: OrchestratorConfig) -> list[Profile]:
    """Those of the settings, at the history of the traffic; candidate counts are those that occur, if they are few."""
    if not settings.candidates and isinstance(bench.candidates, Choice):
        settings = replace(settings, candidates=bench.candidates.values)
    return [profile._replace(history=bench.history) for profile in default_profiles(spec, settings)]


def _facts(bench: OrchestratorBench, config: Config, engine: Engine) -> dict[str, Any]:
    settings, cores = config.orchestrator, usable_cores()
    facts: dict[str, Any] = {
        "model": bench.model,
        "device": engine.device,
        "backend": engine.backend,
        "precision": engine.precision,
        "costs_ms": {str(profile): asdict(engine.costs[profile]) for profile in engine.profiles},
        "history": bench.history,
        "executors": settings.executors,
        "keep_states": settings.keep_states,
        "max_in_flight": settings.max_in_flight,
        "seconds": bench.seconds,
        "warm_up_s": bench.warm_up_s,
        "seed": bench.seed,
    }
    if cores < settings.executors + 2:
        facts["note"] = (
            f"the sender shares {cores} cores with executors ({settings.executors}) and takes time from them"
        )
    return facts


class _Bench:
    """Everything on one engine. `drawn` are launches of the saturated runs by policy, filled as `rows` goes on."""

    def __init__(
        self, bench: OrchestratorBench, settings: OrchestratorConfig, engine: Engine, traffic: Traffic, show: Show
    ) -> None:
        self._bench, self._settings, self._engine, self._traffic, self._show = bench, settings, engine, traffic, show
        widest = max(profile.users for profile in engine.profiles)
        self._depth = min(settings.max_in_flight, max(LEAST_QUEUE, 4 * settings.executors * widest))
        self._queued = f"saturated, {self._depth} in flight"
        self._capacity: dict[str, dict[str, Any]] = {}
        self.drawn: dict[str, list[dict[str, Any]]] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        bench = self._bench
        self._show("engine alone", 0, 1)
        executors = self._settings.executors
        yield full_batches.row(self._engine, self._traffic, executors, bench.seconds, bench.seed)
        self._show("engine alone", 1, 1)
        for policy in bench.policies:
            with self._runs(self._engine, policy) as runs:
                yield self._saturated(policy, runs)
                yield from self._open(policy, runs)
                if policy == "cost":
                    yield self._overloaded(runs)
                    yield self._zipf(runs)
                    yield from twice.rows(self._engine, runs.orchestrator, self._traffic, bench.seed)
        for policy in bench.policies:
            yield self._overhead(policy)
        for policy in bench.policies:
            yield self._planning(policy)

    @contextmanager
    def _runs(self, engine: Engine, policy: str) -> Iterator[Runs]:
        orchestrator = Orchestrator(engine, replace(self._settings, policy=policy), Metrics())
        try:
            yield Runs(self._bench, self._traffic, orchestrator, engine.device, self._show)
        finally:
            orchestrator.close()

    def _saturated(self, policy: str, runs: Runs) -> dict[str, Any]:
        seen = runs.closed(f"{policy}, capacity", self._depth)
        self.drawn[policy] = _drawn(seen)
        row = self._capacity[policy] = rows.of_run("capacity", policy, self._queued, seen, self._bench.deadline_ms)
        if not row["achieved_rate"]:
            raise ConfigError(
                f"{policy}: nothing was answered in {self._bench.seconds:g} s ({row['errors'] or 'no errors'}); "
                f"measure longer, or a smaller model"
            )
        return row

    def _open(self, policy: str, runs: Runs) -> Iterator[dict[str, Any]]:
        """At a share of the first policy's capacity and of its own; the first has one run for both."""
        first, share = self._bench.policies[0], self._bench.share
        common = self._open_row(policy, f"{share:.0%} of {first}{rows.SAME_LOAD}", first, runs)
        own = f"{share:.0%} of {rows.OWN_LOAD}"
        yield common
        yield common | {"load": own} if policy == first else self._open_row(policy, own, policy, runs)

    def _open_row(self, policy: str, load: str, of: str, runs: Runs) -> dict[str, Any]:
        seen = runs.open(f"{policy}, {load}", self._bench.share * self._capacity[of]["achieved_rate"])
        return rows.of_run("open loop", policy, load, seen, self._bench.deadline_ms)

    def _overloaded(self, runs: Runs) -> dict[str, Any]:
        capacity, deadline_ms = self._capacity["cost"], self._bench.deadline_ms
        rate = self._bench.overload * capacity["achieved_rate"]
        seen = runs.open("cost, overload", rate, deadline_ms / 1e3)
        load = f"{self._bench.overload:g} x its own capacity, deadline {deadline_ms:g} ms"
        return rows.of_overload(load, seen, deadline_ms, capacity)

    def _zipf(self, runs: Runs) -> dict[str, Any]:
        bench = self._bench
        generator = np.random.default_rng([bench.seed, 3])
        users = ZipfItems(bench.users, bench.zipf, generator).sample(_ZIPF_SAMPLES, generator).tolist()
        seen = runs.closed("cost, zipf", self._depth, itertools.cycle(users))
        load = f"{self._queued}, {bench.users} users, zipf {bench.zipf:g}"
        return rows.of_run("zipf", "cost", load, seen, bench.deadline_ms)

    def _overhead(self, policy: str) -> dict[str, Any]:
        with self._runs(IdleEngine(self._engine), policy) as runs:
            seen = runs.closed(f"{policy}, overhead", self._depth)
        row = rows.of_overhead(policy, self._queued, seen, self._bench.deadline_ms)
        return row | {"generator_us": own_microseconds(self._traffic)}

    def _planning(self, policy: str) -> dict[str, Any]:
        with self._runs(IdleEngine(self._engine), policy) as runs:
            profiles = runs.orchestrator.profiles
        taken = planning.microseconds(POLICIES[policy], profiles, self._traffic, self._settings.executors)
        return {
            "what": "planner",
            "policy": policy,
            "load": f"{planning.QUEUE} in the queue",
            "us_per_request": taken,
        }


def _drawn(seen: Run) -> list[dict[str, Any]]:
    """Launches from the middle of a run, in milliseconds after the first of them."""
    executors = len({span.executor for span in seen.spans})
    first = max(0, len(seen.spans) // 2 - DRAWN * executors // 2)
    spans: Sequence[Any] = seen.spans[first : first + DRAWN * executors]
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
