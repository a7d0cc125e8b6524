"""Planning, by property: whatever the shapes, the costs and the queue."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.engine.spec import HstuConfig, ModelSpec, Profile, ProfileCost, Task
from flame.errors import HistoryTooLong
from flame.orchestrator.plan import Demand, Plan, largest_first, plan
from flame.orchestrator.profiles import ProfileSet
from flame.schema import InputSchema, ItemTable

LIMIT = 700
HISTORIES = (16, 100)


def spec(limit: int = LIMIT, history: int = max(HISTORIES)) -> ModelSpec:
    schema = InputSchema(ItemTable(100, 8), max_history=history, max_candidates=limit, actions=2)
    hstu = HstuConfig(dim=8, layers=1, heads=1, attention_dim=8, linear_dim=8)
    return ModelSpec("m", "1", (Task("t"),), schema, hstu=hstu)


def costs_of(profiles: tuple[Profile, ...], rank: float, encode: float, score: float) -> dict[Profile, ProfileCost]:
    """Costs with a fixed part of 1 and parts per user-event and user-candidate."""
    return {
        p: ProfileCost(
            1 + rank * p.users * (p.history + p.candidates),
            1 + encode * p.users * p.history,
            1 + score * p.users * p.candidates,
        )
        for p in profiles
    }


milliseconds = st.floats(0.001, 50)
profile = st.builds(Profile, st.sampled_from([1, 2, 5]), st.sampled_from(HISTORIES), st.integers(1, LIMIT))
cost = st.builds(ProfileCost, milliseconds, milliseconds, milliseconds)


@st.composite
def profile_sets(draw: st.DrawFn) -> ProfileSet:
    """Any shapes with any measured costs; one of them holds the longest history."""
    drawn = draw(st.lists(profile, min_size=1, max_size=8))
    drawn.append(drawn[0]._replace(history=max(HISTORIES)))
    costs = {each: draw(cost) for each in drawn if draw(st.booleans())}
    return ProfileSet(spec(), drawn, costs)


demands = st.lists(st.builds(Demand, st.integers(0, max(HISTORIES)), st.integers(1, LIMIT)), min_size=1, max_size=12)


def check(made: Plan, asked: list[Demand], profiles: ProfileSet) -> None:
    """What every plan must hold."""
    taken: dict[int, list[range]] = defaultdict(list)
    encoded = {}
    for place, launch in enumerate(made.launches):
        assert launch.profile in profiles.profiles
        assert [piece.slot for piece in launch.slices] == list(range(len(launch.slices)))
        assert 1 <= len(launch.slices) <= launch.profile.users
        assert all(before < place for before in launch.after)
        for piece in launch.slices:
            tier = profiles.tier(asked[piece.demand].events)
            assert launch.profile.history == tier.history, "a state belongs to one profile length"
            if launch.kind == "encode":
                assert piece.demand not in encoded
                encoded[piece.demand] = place
                continue
            assert 0 < piece.stop - piece.start <= launch.profile.candidates
            taken[piece.demand].append(range(piece.start, piece.stop))
            assert (launch.kind == "score") == (piece.demand in encoded)
            assert launch.kind == "rank" or encoded[piece.demand] in launch.after
    for index, demand in enumerate(asked):
        joined = [place for piece in sorted(taken[index], key=lambda r: r.start) for place in piece]
        assert joined == list(range(demand.candidates)), "every candidate exactly once, slices in order restore them"
    total = sum(getattr(profiles.costs[launch.profile], launch.kind) for launch in made.launches)
    assert made.predicted_ms == pytest.approx(total)


@given(demands, profile_sets())
def test_every_candidate_is_scored_once_at_no_more_than_the_cost_of_largest_first(
    asked: list[Demand], profiles: ProfileSet
) -> None:
    made, baseline = plan(asked, profiles), largest_first(asked, profiles)
    check(made, asked, profiles)
    check(baseline, asked, profiles)
    assert made.predicted_ms <= baseline.predicted_ms * (1 + 1e-6)


@given(demands, profile_sets())
def test_packing_never_costs_more_than_planning_each_request_alone(asked: list[Demand], profiles: ProfileSet) -> None:
    alone = sum(plan([demand], profiles).predicted_ms for demand in asked)
    assert plan(asked, profiles).predicted_ms <= alone * (1 + 1e-6)


@given(demands, profile_sets(), st.integers(0, 3))
def test_no_more_histories_are_encoded_than_there_are_states(
    asked: list[Demand], profiles: ProfileSet, states: int
) -> None:
    made = plan(asked, profiles, dict.fromkeys(HISTORIES, states))
    check(made, asked, profiles)
    encoded: dict[int, int] = defaultdict(int)
    for launch in made.launches:
        encoded[launch.profile.history] += len(launch.slices) if launch.kind == "encode" else 0
    assert max(encoded.values()) <= states


@given(st.integers(0, max(HISTORIES)), st.integers(1, LIMIT), profile_sets())
def test_a_prediction_is_the_cost_of_the_plan_for_one(events: int, candidates: int, profiles: ProfileSet) -> None:
    predicted = profiles.predict(events, candidates)
    shared = plan([Demand(events, candidates)], profiles).predicted_ms
    assert shared <= predicted * (1 + 1e-6), "only packing slices of the request with each other can be cheaper"
    if profiles.widest == 1:
        assert shared == pytest.approx(predicted)


SIZES = tuple(Profile(1, 100, size) for size in (64, 128, 256, 512))


def shape(made: Plan) -> list[tuple[str, int, list[tuple[int, int, int]]]]:
    return [
        (launch.kind, launch.profile.candidates, [(p.demand, p.start, p.stop) for p in launch.slices])
        for launch in made.launches
    ]


def test_a_request_that_fits_one_profile_is_ranked_in_one_launch() -> None:
    profiles = ProfileSet(spec(), SIZES, costs_of(SIZES, rank=0.01, encode=0.01, score=0.01))
    assert shape(plan([Demand(100, 100)], profiles)) == [("rank", 128, [(0, 0, 100)])]


def test_encoding_apart_must_pay_by_more_than_noise() -> None:
    profiles = ProfileSet(spec(), SIZES, {p: ProfileCost(10.0, 8.0, 1.8) for p in SIZES})
    assert shape(plan([Demand(100, 512)], profiles)) == [("rank", 512, [(0, 0, 512)])]


def test_a_long_history_is_encoded_once_for_all_slices() -> None:
    profiles = ProfileSet(spec(), SIZES, costs_of(SIZES, rank=0.5, encode=0.5, score=0.01))
    made = plan([Demand(100, 700)], profiles)
    assert shape(made) == [
        ("encode", 64, [(0, 0, 0)]),
        ("score", 512, [(0, 0, 512)]),
        ("score", 256, [(0, 512, 700)]),
    ]
    assert [launch.after for launch in made.launches] == [(), (0,), (0,)]


def test_largest_first_cuts_as_the_paper_does() -> None:
    profiles = ProfileSet(spec(), SIZES, {})
    pieces = [
        (launch.profile.candidates, launch.slices[0][1:3])
        for launch in largest_first([Demand(3, 700)], profiles).launches
    ]
    assert pieces == [(512, (0, 512)), (128, (512, 640)), (64, (640, 700))]


def test_cost_decides_where_padding_is_cheaper_than_one_more_launch() -> None:
    profiles = ProfileSet(spec(), SIZES, costs_of(SIZES, rank=0.001, encode=10, score=10))
    assert shape(plan([Demand(100, 200)], profiles)) == [("rank", 256, [(0, 0, 200)])]
    assert len(largest_first([Demand(100, 200)], profiles).launches) == 3


WIDE = (*SIZES, *(size._replace(users=4) for size in SIZES))


def test_small_requests_of_several_users_share_a_launch_where_that_is_cheaper() -> None:
    asked = [Demand(10, 60), Demand(20, 20), Demand(30, 64), Demand(40, 1)]
    cheap = ProfileSet(spec(), WIDE, costs_of(WIDE, rank=0.001, encode=1, score=1))
    assert shape(plan(asked, cheap)) == [("rank", 64, [(2, 0, 64), (0, 0, 60), (1, 0, 20), (3, 0, 1)])]
    dear = ProfileSet(spec(), WIDE, {p: ProfileCost(*3 * (p.users**2,)) for p in WIDE})
    assert [launch.profile.users for launch in plan(asked, dear).launches] == [1, 1, 1, 1]


def test_a_tail_of_a_large_request_travels_with_a_small_one() -> None:
    costs = costs_of(WIDE, rank=0.001, encode=1, score=1)
    asked = [Demand(100, 576), Demand(100, 64)]
    made = plan(asked, ProfileSet(spec(), WIDE, costs))
    assert ("rank", 64, [(0, 512, 576), (1, 0, 64)]) in shape(made)


def test_launches_start_in_the_order_in_which_requests_came() -> None:
    profiles = ProfileSet(spec(), SIZES, costs_of(SIZES, rank=0.5, encode=0.5, score=0.01))
    made = plan([Demand(100, size) for size in (64, 700, 130, 512)], profiles)
    first = [min(piece.demand for piece in launch.slices) for launch in made.launches]
    assert first == sorted(first)


def test_a_history_over_every_profile_is_refused_by_name() -> None:
    with pytest.raises(HistoryTooLong, match="101 events"):
        plan([Demand(101, 1)], ProfileSet(spec(), SIZES, {}))
