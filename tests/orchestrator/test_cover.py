"""The two dynamic programs against trying everything."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.orchestrator.cover import Cover, Grouping

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


LENGTHS = (3, 2, 1, 0)


class Offer(NamedTuple):
    """A launch to be had for slices of some length: how many it holds, and its price."""

    slots: int
    price: float


@st.composite
def tables(draw: st.DrawFn) -> tuple[Grouping, list[int], list[list[Offer]]]:
    """Launches of some widths in some sizes, how many slices there are of each length, and the offers of each slice."""
    launches = draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 5]), prices), max_size=6))
    launches.append((3, 1, draw(prices)))
    counts = draw(st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any))
    widths = sorted({slots for _, slots, _ in launches}, reverse=True)
    table = [
        [min((p for size, slots, p in launches if size >= length and slots >= w), default=math.inf) for w in widths]
        for length in LENGTHS
    ]
    offers = [
        [Offer(slots, price) for size, slots, price in launches if size >= length]
        for length, count in zip(LENGTHS, counts, strict=True)
        for _ in range(count)
    ]
    return Grouping(widths, table), counts, offers


def cheapest_groups(offers: list[list[Offer]]) -> float:
    """Every way of cutting a list of slices into runs, each in the cheapest launch that holds it."""
    if not offers:
        return 0.0
    return min(
        min((offer.price for offer in offers[0] if offer.slots >= stop), default=math.inf)
        + cheapest_groups(offers[stop:])
        for stop in range(1, len(offers) + 1)
    )


@given(tables())
def test_runs_of_slices_are_cut_at_the_least_price(table: tuple[Grouping, list[int], list[list[Offer]]]) -> None:
    grouping, counts, offers = table
    ends, cost = grouping.cut(counts)
    assert ends == sorted(set(ends))
    assert ends[-1] == len(offers)
    assert cost == pytest.approx(cheapest_groups(offers))
    paid = 0.0
    for first, end in zip([0, *ends], ends, strict=False):
        paid += min(offer.price for offer in offers[first] if offer.slots >= end - first)
    assert paid <= cost * (1 + 1e-6)


def test_of_ways_that_cost_the_same_the_one_with_fewer_launches_stays() -> None:
    assert Grouping([4, 1], [[2.0, 1.0]]).cut([2]) == ([2], 2.0)


def test_slices_that_no_launch_holds_are_cut_all_the_same() -> None:
    """Nobody asks for that; but compiled code must not run on and on if somebody does."""
    assert Grouping([2, 1], [[math.inf, math.nan]]).cut([3]) == ([1, 2, 3], math.inf)
