"""Workloads: the same seed gives the same requests, and they are what was ordered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.bench.distributions import Choice, LogNormal, ZipfItems, parse_counts
from flame.bench.workloads import SCENARIOS, Limits, Recipe, Workload, generate
from flame.errors import ConfigError

LIMITS = Limits(max_history=64, max_candidates=300, actions=4, scenarios=3, items=5000)
RECIPE = Recipe(requests=200, candidates=Choice((16, 32)), history=Choice((0, 7, 64)), users=20)


PINNED = {
    "users": [2, 2, 1],
    "items": [3487, 4426, 114, 1257, 4564, 4635, 420, 2627, 4426, 4162, 1984, 2550],
    "history": [2363, 4275],
}


def flat(workload: Workload) -> list[np.ndarray]:
    columns = [column for one in workload.histories for column in (one.items, one.actions, one.timestamps)]
    return [workload.users, workload.scenarios, workload.starts, workload.items, *columns]


def test_the_same_seed_gives_the_same_requests() -> None:
    for one, other in zip(flat(generate(RECIPE, LIMITS)), flat(generate(RECIPE, LIMITS)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_seed_gives_other_requests() -> None:
    other = Recipe(requests=200, candidates=Choice((16, 32)), history=Choice((0, 7, 64)), users=20, seed=1)
    assert not np.array_equal(generate(RECIPE, LIMITS).items[:100], generate(other, LIMITS).items[:100])


def test_a_seed_gives_what_it_gave_before() -> None:
    """Numbers are compared between versions, so the stream of a seed is part of the interface."""
    workload = generate(Recipe(requests=3, candidates=Choice((4,)), history=Choice((2,)), users=2), LIMITS)
    assert workload.users.tolist() == PINNED["users"]
    assert workload.items.tolist() == PINNED["items"]
    assert workload.histories[0].items.tolist() == PINNED["history"]


def test_changing_the_history_leaves_the_candidates() -> None:
    without = generate(Recipe(requests=200, candidates=Choice((16, 32)), history=None, users=20), LIMITS)
    np.testing.assert_array_equal(without.items, generate(RECIPE, LIMITS).items)
    assert without.request(0).history is None


def test_requests_respect_the_limits_and_the_order() -> None:
    workload = generate(RECIPE, LIMITS)
    assert len(workload) == 200
    sizes = set()
    for request in workload:
        sizes.add(len(request.candidates))
        assert len(set(request.candidates.tolist())) == len(request.candidates)
        assert request.candidates.min() >= 1
        assert request.candidates.max() <= LIMITS.items
        assert 1 <= request.user <= 20
        assert 0 <= request.scenario < 3
        history = request.history
        assert history is not None
        assert len(history.items) in (0, 7, 64)
        assert np.all(np.diff(history.timestamps) >= 0)
        assert np.all((history.actions >= 0) & (history.actions < 4))
    assert sizes == {16, 32}


def test_a_user_who_comes_back_has_the_same_history_and_the_stream_goes_round() -> None:
    workload = generate(RECIPE, LIMITS)
    by_user = {}
    for request in workload:
        assert by_user.setdefault(request.user, request.history) is request.history
    assert workload.request(203).user == workload.request(3).user
    np.testing.assert_array_equal(workload.request(203).candidates, workload.request(3).candidates)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(requests=5, candidates=Choice((301,)), history=None),
        Recipe(requests=5, candidates=Choice((1,)), history=Choice((65,))),
        Recipe(requests=0, candidates=Choice((1,)), history=None),
        Recipe(requests=1, candidates=Choice((1,)), history=None, users=0),
        Recipe(requests=1, candidates=Choice((1,)), history=None, zipf=-1.0),
    ],
)
def test_what_the_model_cannot_take_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ConfigError):
        generate(recipe, LIMITS)


def test_more_candidates_than_items_are_refused_and_all_items_are_possible() -> None:
    generator = np.random.default_rng(0)
    items = ZipfItems(50, 1.2, generator)
    assert sorted(items.sample_distinct(50, generator)) == list(range(1, 51))
    with pytest.raises(ConfigError, match="51 different candidates"):
        items.sample_distinct(51, generator)


def test_item_popularity_follows_the_law() -> None:
    generator = np.random.default_rng(0)
    counts = np.sort(np.bincount(ZipfItems(1000, 1.0, generator).sample(400_000, generator)))[::-1]
    expected = 400_000 / np.arange(1, 1001) / (1 / np.arange(1, 1001)).sum()
    np.testing.assert_allclose(counts[:20], expected[:20], rtol=0.06)
    flat_counts = np.bincount(ZipfItems(10, 0.0, generator).sample(100_000, generator))[1:]
    np.testing.assert_allclose(flat_counts, 10_000, rtol=0.06)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128", Choice((128,))),
        ("128,256, 512", Choice((128, 256, 512))),
        ("lognormal:300,0.8", LogNormal(300, 0.8)),
    ],
)
def test_distributions_are_read_from_text(text: str, expected: object) -> None:
    assert parse_counts(text) == expected


@pytest.mark.parametrize(
    "text", ["", "abc", "0", "-1", "128,", "lognormal:300", "lognormal:0,1", "lognormal:5,-1", "1.5"]
)
def test_bad_distributions_say_what_would_be_right(text: str) -> None:
    with pytest.raises(ConfigError, match="lognormal:MEDIAN,SIGMA"):
        parse_counts(text)


@given(st.floats(1, 500), st.floats(0.1, 2), st.integers(1, 1000))
def test_lognormal_counts_stay_inside_the_limit(median: float, sigma: float, most: int) -> None:
    values = LogNormal(median, sigma).sample(200, most, np.random.default_rng(0))
    assert values.min() >= 1
    assert values.max() <= most


def test_lognormal_counts_have_the_median_that_was_asked_for() -> None:
    values = LogNormal(300, 0.8).sample(20_000, 100_000, np.random.default_rng(0))
    assert np.median(values) == pytest.approx(300, rel=0.03)
    assert np.log(values).std() == pytest.approx(0.8, rel=0.03)


def test_the_scenarios_are_those_of_the_paper() -> None:
    assert {name: (one.history, one.candidates.values) for name, one in SCENARIOS.items()} == {
        "base": (512, (128,)),
        "long": (1024, (512,)),
        "mixed": (1024, (128, 256, 512, 1024)),
    }
