"""`flame bench orchestrator`, from the settings to the document: one engine with all profiles, and facts of the run."""

from __future__ import annotations

import sys
from typing import Any

from msgspec.structs import asdict, replace

from flame.bench.distributions import Choice
from flame.bench.orchestrator.marks import marks
from flame.bench.orchestrator.phases import Phases
from flame.bench.orchestrator.rows import COLUMNS
from flame.bench.orchestrator.setting import OrchestratorBench
from flame.bench.orchestrator.traffic import Traffic
from flame.bench.orchestrator.twice import PAIRS
from flame.bench.progress import Show
from flame.config import Config, OrchestratorConfig
from flame.engine.backends.base import Engine
from flame.engine.build import build
from flame.engine.costs import measure_cost
from flame.engine.machine import usable_cores
from flame.engine.package import load
from flame.engine.spec import ModelSpec, Profile
from flame.errors import ConfigError
from flame.orchestrator.core import executors_core
from flame.orchestrator.profiles import default_profiles
from flame.ranker import launch_threads


def run(bench: OrchestratorBench, config: Config, show: Show) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of the run, the marks among them. Raises what is wrong with settings, model or machine."""
    if config.orchestrator.timeline_entries < 8 * PAIRS:
        raise ConfigError("flame bench orchestrator reads the timeline; orchestrator.timeline_entries is too small")
    package = load(bench.model, allow_code=config.engine.allow_code)
    traffic = Traffic(package.spec, bench.history, bench.candidates, bench.distinct, bench.seed)
    shapes = _profiles(package.spec, bench, config.orchestrator)
    engine = build(package, config.engine, shapes, threads=launch_threads(config), progress=show)
    try:
        # What an artifact remembers was measured in another hour, and planning would be blamed for it.
        engine.costs = {profile: measure_cost(engine, profile) for profile in engine.profiles}
        if engine.device != "cpu":
            traffic.pin()
        measured = Phases(bench, config.orchestrator, engine, traffic, show)
        found = [dict.fromkeys(COLUMNS) | row for row in measured.rows()]
    finally:
        engine.close()
        traffic.close()
    return found, _facts(bench, config, engine, traffic) | {"marks": marks(found), "launches": measured.drawn}


def _profiles(spec: ModelSpec, bench: OrchestratorBench, settings: OrchestratorConfig) -> list[Profile]:
    """Those of the settings, at the history of the traffic; candidate counts are those that occur, if they are few."""
    if not settings.candidates and isinstance(bench.candidates, Choice):
        settings = replace(settings, candidates=bench.candidates.values)
    return [profile._replace(history=bench.history) for profile in default_profiles(spec, settings)]


def _facts(bench: OrchestratorBench, config: Config, engine: Engine, traffic: Traffic) -> dict[str, Any]:
    settings, cores = config.orchestrator, usable_cores()
    shared = executors_core([engine], settings) is not None
    facts: dict[str, Any] = {
        "model": bench.model,
        "device": engine.device,
        "backend": engine.backend,
        "precision": engine.precision,
        "costs_ms": {str(profile): asdict(engine.costs[profile]) for profile in engine.profiles},
        "history": bench.history,
        "executors": settings.executors,
        "one_core": shared,
        "switch_interval_ms": 1e3 * sys.getswitchinterval(),
        "requests_pinned": traffic.pinned,
        "keep_states": settings.keep_states,
        "max_in_flight": settings.max_in_flight,
        "rounds": bench.rounds,
        "seconds": bench.seconds,
        "warm_up_s": bench.warm_up_s,
        "seed": bench.seed,
    }
    if shared:
        facts["note"] = "the sender runs on the core of the executors and gives way to them: Orchestrator.bind_thread"
    elif cores < settings.executors + 2:
        facts["note"] = (
            f"the sender shares {cores} cores with executors ({settings.executors}) and takes time from them"
        )
    return facts
