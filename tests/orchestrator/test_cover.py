"""The two dynamic programs against trying everything."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.orchestrator.cover import Cover, Offer, group

prices = st.floats(0.001, 50)


def cheapest_cover(prices: dict[int, float], left: int) -> float:
    if left <= 0:
        return 0.0
    return min(price + cheapest_cover(prices, left - size) for size, price in prices.items())


@given(st.dictionaries(st.sampled_from([2, 3, 5, 7]), prices, min_size=1), st.integers(1, 11))
def test_a_cover_is_the_cheapest_there_is(prices: dict[int, float], candidates: int) -> None:
    cover = Cover(prices, 11)
    lengths = cover.lengths(candidates)
    assert sum(lengths) == candidates
    assert list(lengths) == sorted(lengths, reverse=True)
    assert cover.costs[candidates] == pytest.approx(cheapest_cover(prices, candidates))


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[Offer, ...]]:
    """Offers of slices, longest first: launches of some widths in some sizes, and what a shorter slice has besides."""
    launches = draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 5]), prices), max_size=6))
    launches.append((3, 1, draw(prices)))
    lengths = sorted(draw(st.lists(st.integers(0, 3), min_size=1, max_size=7)), reverse=True)
    return [
        tuple(
            Offer(slots, price) for size, slots, price in sorted(launches, key=lambda each: -each[1]) if size >= length
        )
        for length in lengths
    ]


def cheapest_groups(offers: list[tuple[Offer, ...]]) -> float:
    """Every way of cutting a list of slices into runs, each in the cheapest launch that holds it."""
    if not offers:
        return 0.0
    return min(
        min((offer.price for offer in offers[0] if offer.slots >= stop), default=math.inf)
        + cheapest_groups(offers[stop:])
        for stop in range(1, len(offers) + 1)
    )


@given(tables())
def test_runs_of_slices_are_cut_at_the_least_price(offers: list[tuple[Offer, ...]]) -> None:
    ends, cost = group(offers)
    assert ends == sorted(set(ends))
    assert ends[-1] == len(offers)
    assert cost == pytest.approx(cheapest_groups(offers))
    paid = 0.0
    for first, end in zip([0, *ends], ends, strict=False):
        paid += min(offer.price for offer in offers[first] if offer.slots >= end - first)
    assert paid <= cost * (1 + 1e-6)


def test_of_ways_that_cost_the_same_the_one_with_fewer_launches_stays() -> None:
    ends, cost = group([(Offer(4, 2.0), Offer(1, 1.0))] * 2)
    assert (ends, cost) == ([2], 2.0)
