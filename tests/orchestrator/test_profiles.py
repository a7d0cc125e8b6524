from __future__ import annotations

import pytest

from flame.config import OrchestratorConfig
from flame.engine.spec import ClimberConfig, ModelSpec, Profile, ProfileCost, Task
from flame.errors import ConfigError
from flame.orchestrator.profiles import ProfileSet, default_profiles, estimated_cost
from flame.schema import InputSchema, ItemTable, SequenceSpec


def spec(limit: int, history: int = 20, sequences: tuple[SequenceSpec, ...] = (SequenceSpec("all"),)) -> ModelSpec:
    schema = InputSchema(ItemTable(9, 4), history, limit, actions=2, sequences=sequences)
    return ModelSpec("m", "1", (Task("t"),), schema, climber=ClimberConfig(4, 1, 1, 4))


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(1, [1]), (64, [64]), (65, [64, 65]), (512, [64, 128, 256, 512]), (600, [64, 128, 256, 512, 600])],
)
def test_candidate_counts_are_powers_of_two_up_to_the_limit_itself(limit: int, sizes: list[int]) -> None:
    made = default_profiles(spec(limit), OrchestratorConfig())
    assert made == tuple(Profile(1, 20, size) for size in sizes)


def test_users_and_candidates_come_from_the_configuration() -> None:
    config = OrchestratorConfig(users=(8, 1, 8), candidates=(100, 10))
    assert default_profiles(spec(100), config) == (
        Profile(1, 20, 10), Profile(1, 20, 100), Profile(8, 20, 10), Profile(8, 20, 100)
    )  # fmt: skip


def test_a_candidate_count_that_no_request_can_have_is_named() -> None:
    with pytest.raises(ConfigError, match=r"\[101\].*at most 100"):
        default_profiles(spec(100), OrchestratorConfig(candidates=(100, 101)))


SIZES = (Profile(1, 20, 16), Profile(1, 20, 32), Profile(1, 20, 64))
PROFILES = (Profile(1, 20, 64), Profile(1, 50, 16), Profile(2, 50, 64))


def test_a_tier_is_found_by_the_events_that_its_sequences_hold() -> None:
    halves = tuple(SequenceSpec(str(part), "part", part, of=2) for part in range(2))
    profiles = ProfileSet(spec(64, 50, halves), PROFILES, {})
    assert profiles.tier(10).history == 20
    assert profiles.tier(11).history == 50


def test_missing_costs_are_estimated_and_measured_ones_kept() -> None:
    measured = ProfileCost(3.0, 2.0, 1.0)
    profiles = ProfileSet(spec(64, 50), PROFILES, {PROFILES[0]: measured})
    assert profiles.costs[PROFILES[0]] == measured
    assert profiles.costs[PROFILES[2]] == estimated_cost(PROFILES[2])
    assert estimated_cost(PROFILES[2]).rank == pytest.approx(0.02 + 0.001 * 2 * (50 + 64))


def test_encoding_has_one_price_whatever_the_candidates() -> None:
    noisy = {p: ProfileCost(9, encode, 1) for p, encode in zip(SIZES, (3.0, 8.0, 2.0), strict=True)}
    profiles = ProfileSet(spec(64), SIZES, noisy)
    assert [cost.encode for cost in profiles.costs.values()] == [3.0, 3.0, 3.0]
    assert profiles.tiers[0].profile("encode", 1, 0) == SIZES[0], "the smallest buffer of all that cost the same"
