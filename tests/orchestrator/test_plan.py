"""Planning, by property: whatever the shapes, the costs and the queue."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.engine.spec import HstuConfig, ModelSpec, Profile, ProfileCost, Task
from flame.errors import HistoryTooLong
from flame.orchestrator.plan import Demand, Plan, plan
from flame.orchestrator.policies import POLICIES, implicit, largest_first
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


whole = st.just(1.0)


def demand_lists(
    encoded: st.SearchStrategy[bool], again: st.SearchStrategy[float], fresh: st.SearchStrategy[float] = whole
) -> st.SearchStrategy[list[Demand]]:
    demand = st.builds(Demand, st.integers(0, max(HISTORIES)), st.integers(1, LIMIT), encoded, again, fresh)
    return st.lists(demand, min_size=1, max_size=12)


demands = demand_lists(st.just(False), st.just(0.0))
returning = demand_lists(st.booleans(), st.sampled_from([0.0, 0.4, 1.0]))
growing = demand_lists(st.booleans(), st.just(0.0), st.sampled_from([0.05, 0.5, 1.0]))


def check(made: Plan, asked: list[Demand], profiles: ProfileSet, *, one_shape: bool = False) -> None:
    """What every plan must hold; with `one_shape`, short histories may lie in longer profiles."""
    taken: dict[int, list[range]] = defaultdict(list)
    encoded = {}
    for place, launch in enumerate(made.launches):
        assert launch.profile in profiles.profiles
        assert [piece.slot for piece in launch.slices] == list(range(len(launch.slices)))
        assert 1 <= len(launch.slices) <= launch.profile.users
        assert all(before < place for before in launch.after)
        for piece in launch.slices:
            history = profiles.tier(asked[piece.demand].events).history
            fits = launch.profile.history == history or (one_shape and launch.profile.history > history)
            assert fits, "a state belongs to one profile length"
            if launch.kind == "encode":
                assert piece.demand not in encoded
                encoded[piece.demand] = place
                continue
            assert 0 < piece.stop - piece.start <= launch.profile.candidates
            taken[piece.demand].append(range(piece.start, piece.stop))
            if asked[piece.demand].encoded:
                assert piece.demand not in encoded
            else:
                assert (launch.kind == "score") == (piece.demand in encoded)
                assert launch.kind == "rank" or encoded[piece.demand] in launch.after
    for index, demand in enumerate(asked):
        joined = [place for piece in sorted(taken[index], key=lambda r: r.start) for place in piece]
        assert joined == list(range(demand.candidates)), "every candidate exactly once, slices in order restore them"
    total = sum(getattr(profiles.costs[launch.profile], launch.kind) for launch in made.launches)
    assert made.predicted_ms == pytest.approx(total)


@pytest.mark.parametrize("policy", POLICIES)
@given(returning, profile_sets())
def test_every_policy_scores_every_candidate_once(policy: str, asked: list[Demand], profiles: ProfileSet) -> None:
    check(POLICIES[policy](asked, profiles), asked, profiles, one_shape=policy == "implicit")


@given(demand_lists(st.booleans(), st.just(0.0)), profile_sets())
def test_planning_by_cost_is_never_dearer_than_largest_first(asked: list[Demand], profiles: ProfileSet) -> None:
    assert plan(asked, profiles).predicted_ms <= largest_first(asked, profiles).predicted_ms * (1 + 1e-6)


@given(growing, profile_sets())
def test_an_appended_history_costs_its_share_of_an_encode(asked: list[Demand], profiles: ProfileSet) -> None:
    made = plan(asked, profiles)
    total = sum(getattr(profiles.costs[launch.profile], launch.kind) for launch in made.launches)
    assert made.predicted_ms <= total * (1 + 1e-6)
    assert made.predicted_ms <= largest_first(asked, profiles).predicted_ms * (1 + 1e-6)
    assert sum(plan([demand], profiles).predicted_ms for demand in asked) >= made.predicted_ms * (1 - 1e-6)
    for demand in asked:
        alone = profiles.predict(*demand[:2], encoded=demand.encoded, fresh=demand.fresh)
        assert alone <= profiles.predict(*demand[:2], encoded=demand.encoded) * (1 + 1e-6)


@given(demands, profile_sets(), st.sampled_from(["largest-first", "implicit"]))
def test_the_baselines_rank_each_request_alone(asked: list[Demand], profiles: ProfileSet, policy: str) -> None:
    launches = POLICIES[policy](asked, profiles, dict.fromkeys(HISTORIES, 3)).launches
    assert {(launch.kind, len(launch.slices), launch.after) for launch in launches} == {("rank", 1, ())}
    assert [launch.slices[0].demand for launch in launches] == sorted(launch.slices[0].demand for launch in launches)


@given(demands, profile_sets())
def test_implicit_runs_one_shape_which_is_the_largest(asked: list[Demand], profiles: ProfileSet) -> None:
    (shape,) = {launch.profile for launch in implicit(asked, profiles).launches}
    longest = [profile for profile in profiles.profiles if profile.history == max(HISTORIES)]
    most = max(profile.candidates for profile in longest)
    assert shape == min(profile for profile in longest if profile.candidates == most)


@given(demands, profile_sets())
def test_packing_never_costs_more_than_planning_each_request_alone(asked: list[Demand], profiles: ProfileSet) -> None:
    alone = sum(plan([demand], profiles).predicted_ms for demand in asked)
    assert plan(asked, profiles).predicted_ms <= alone * (1 + 1e-6)


@given(returning, profile_sets(), st.integers(0, 3))
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


@given(demands, profile_sets())
def test_a_history_that_is_encoded_never_makes_a_plan_dearer(asked: list[Demand], profiles: ProfileSet) -> None:
    """Of one request alone: of several, each is split the way that suits it best before they are packed."""
    for demand in asked:
        known = plan([demand._replace(encoded=True)], profiles).predicted_ms
        assert known <= profiles.predict(*demand[:2]) * (1 + 1e-6)


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


def test_a_history_that_is_encoded_is_only_scored() -> None:
    profiles = ProfileSet(spec(), SIZES, costs_of(SIZES, rank=0.5, encode=0.5, score=0.01))
    made = plan([Demand(100, 700, encoded=True)], profiles)
    assert [(launch.kind, launch.after) for launch in made.launches] == [("score", ()), ("score", ())]


def test_a_history_that_comes_again_is_encoded_where_that_saves_more_than_it_costs() -> None:
    profiles = ProfileSet(spec(), SIZES, {p: ProfileCost(10.0, 8.0, 3.0) for p in SIZES})
    kinds = {
        again: [launch.kind for launch in plan([Demand(100, 512, again=again)], profiles).launches]
        for again in (0.0, 0.2, 0.3, 1.0)
    }
    assert kinds == {0.0: ["rank"], 0.2: ["rank"], 0.3: ["encode", "score"], 1.0: ["encode", "score"]}


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


@pytest.mark.parametrize("policy", POLICIES)
def test_a_history_over_every_profile_is_refused_by_name(policy: str) -> None:
    with pytest.raises(HistoryTooLong, match="101 events"):
        POLICIES[policy]([Demand(101, 1)], ProfileSet(spec(), SIZES, {}))
