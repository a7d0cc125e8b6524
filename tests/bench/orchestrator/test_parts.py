"""Full batches, the queue that is planned, the marks, and the settings: what each is by itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from flame.bench import report
from flame.bench.distributions import Choice
from flame.bench.orchestrator.full_batches import batches
from flame.bench.orchestrator.idle import IdleEngine
from flame.bench.orchestrator.marks import marks
from flame.bench.orchestrator.planning import microseconds
from flame.bench.orchestrator.rows import OWN_LOAD, SAME_LOAD, median
from flame.bench.orchestrator.setting import DEFAULTS, OrchestratorBench
from flame.bench.orchestrator.traffic import Traffic
from flame.config import load
from flame.engine.presets import preset
from flame.engine.spec import Profile
from flame.errors import ConfigError
from flame.orchestrator.plan import Demand, Plan, plan
from flame.orchestrator.profiles import ProfileSet


def test_batches_are_full_and_as_cheap_as_a_user_can_have_them(engine: IdleEngine, traffic: Traffic) -> None:
    counted = Counter(batches(engine, traffic))
    requests = Counter(traffic.counts)
    assert {batch.profile for batch in counted} == {Profile(2, 30, 8), Profile(2, 30, 16)}
    for (profile, pairs), launches in counted.items():
        assert pairs == 2 * profile.candidates, "sizes that are profiles leave nothing empty"
        assert launches == pytest.approx(requests[profile.candidates] / 2, abs=0.5)


def test_batches_of_sizes_between_profiles_count_what_was_asked(engine: IdleEngine) -> None:
    between = Traffic(engine.spec, 30, Choice((12,)), 10, seed=0)
    assert set(batches(engine, between)) == {(Profile(2, 30, 16), 24)}


@pytest.mark.parametrize(("executors", "sizes"), [(1, {4}), (100, {1, 2, 3})])
def test_the_whole_queue_is_planned_in_batches_of_the_schedule(
    engine: IdleEngine, traffic: Traffic, executors: int, sizes: set[int]
) -> None:
    seen: list[int] = []

    def planner(demands: Any, profiles: ProfileSet, states: Any = None) -> Plan:
        assert all(isinstance(demand, Demand) for demand in demands)
        seen.append(len(demands))
        return plan(demands, profiles)

    profiles = ProfileSet(engine.spec, engine.profiles, engine.costs)
    assert microseconds(planner, profiles, traffic, executors) > 0
    assert sum(seen) == 30 * 256
    assert set(seen) == sizes


def row(what: str, policy: str, load: str = "", **values: Any) -> dict[str, Any]:
    return {"what": what, "policy": policy, "load": load} | values


ROWS = [
    row("engine alone", "", pairs_per_s=100.0),
    row("capacity", "implicit", pairs_per_s=50.0),
    row("capacity", "cost", pairs_per_s=80.0, busy_share=0.91, padding_waste=0.08),
    row("open loop", "implicit", f"80% of implicit{SAME_LOAD}", ms_p99=10.0),
    row("open loop", "implicit", f"80% of {OWN_LOAD}", ms_p99=10.0),
    row("open loop", "cost", f"80% of implicit{SAME_LOAD}", ms_p99=5.0),
    row("open loop", "cost", f"80% of {OWN_LOAD}", ms_p99=6.0),
    row("reuse", "cost", second_over_first=0.2),
    row("reuse", "cost", second_over_first=0.4),
]


def test_marks_are_held_against_what_was_measured() -> None:
    found = {mark["mark"]: mark for mark in marks(ROWS)}
    assert {name: (mark["value"], mark["met"]) for name, mark in found.items()} == {
        "throughput over implicit": (1.6, True),
        "p99 over implicit, same load": (0.5, True),
        "p99 over implicit, each at its share of its own capacity": (0.6, False),
        "share of the engine alone": (0.8, False),
        "busy share at saturation": (0.91, False),
        "padding waste at saturation": (0.08, True),
        "second request over the first, device time, worst candidate count": (0.4, False),
    }
    assert found["throughput over implicit"]["bound"] == ">= 1.6"
    assert found["padding waste at saturation"]["bound"] == "<= 0.08"


def test_a_row_of_several_rounds_has_their_medians() -> None:
    rounds = [
        row("capacity", "cost", pairs_per_s=rate, ms_p99=p99) | {"late": late, "stages": stages, "errors": errors}
        for rate, p99, late, stages, errors in [
            (10.0, 3.0, False, {"queue": {"p50": 1.0}}, {}),
            (30.0, None, True, {"queue": {"p50": 5.0}}, {"timeout": 3}),
            (20.0, 5.0, False, {"queue": {"p50": 2.0}}, {}),
        ]
    ]
    assert median(rounds) == {
        "what": "capacity",
        "policy": "cost",
        "load": "",
        "pairs_per_s": 20.0,
        "ms_p99": 4.0,
        "late": True,
        "stages": {"queue": {"p50": 2.0}},
        "errors": {"timeout": 3},
        "pairs_per_s_spread": 1.0,
    }


def test_what_was_not_measured_has_no_mark() -> None:
    assert marks([]) == []
    assert marks([row("capacity", "cost", pairs_per_s=0.0)]) == []


def test_documents_of_several_runs_become_one_by_policy_and_load() -> None:
    machine = {"commit": "0123"}
    first, second = (
        {"bench": "orchestrator", "machine": machine, "rows": rows}
        for rows in (ROWS, [row("capacity", "cost", pairs_per_s=90.0)])
    )
    merged = report.merged([first, second])["rows"]
    assert [one for one in merged if one["what"] == "capacity"] == [ROWS[1], *second["rows"]]
    assert len(merged) == len(ROWS)


def test_a_policy_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="smallest-first"):
        OrchestratorBench("preset:tiny-climber", 30, Choice((8,)), 10.0, policies=("smallest-first",))


@pytest.mark.parametrize("device", DEFAULTS)
def test_the_defaults_of_a_device_are_settings_that_its_model_can_take(device: str) -> None:
    defaults = DEFAULTS[device]
    config = load(environ={}, defaults=defaults.settings)
    assert config.orchestrator.users == defaults.settings["orchestrator.users"]
    limits = preset(defaults.model.removeprefix("preset:")).input
    assert defaults.traffic.history <= limits.max_history
    assert max(defaults.traffic.candidates.values) <= limits.max_candidates
