"""The two small dynamic programs of planning: covering a candidate list by launches, and grouping slices into launches.

Both know lengths and prices only. Prices are milliseconds; a price of infinity means "there is no such launch".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_GAIN = 1 - 1e-9
"""A way must be cheaper than the best so far by more than rounding; otherwise the one with fewer launches stays."""


class Offer(NamedTuple):
    """A launch to be had: how many slices it holds, and its price."""

    slots: int
    price: float


class Cover:
    """The cheapest way to cover `n` candidates by pieces of given sizes, worked out once for every `n` up to `limit`.

    Piece sizes may repeat, and the last piece may be larger than what is left for it. `costs[n]` are the milliseconds
    of the cheapest cover of `n` candidates. Immutable after it is made, but for a memo that any thread may fill.
    """

    def __init__(self, prices: Mapping[int, float], limit: int) -> None:
        sizes = sorted(prices, reverse=True)
        self.costs = [0.0] * (limit + 1)
        self._size = [0] * (limit + 1)
        for n in range(1, limit + 1):
            best = math.inf
            for size in sizes:
                cost = prices[size] + self.costs[n - size if n > size else 0]
                if cost < best * _GAIN:
                    best, self._size[n] = cost, size
            self.costs[n] = best
        self._lengths: dict[int, tuple[int, ...]] = {}

    def lengths(self, n: int) -> tuple[int, ...]:
        """How many candidates each piece of the cheapest cover takes, longest first; they add up to `n`."""
        found = self._lengths.get(n)
        if found is None:
            found = self._lengths[n] = self._walk(n)
        return found

    def _walk(self, n: int) -> tuple[int, ...]:
        sizes, left = [], n
        while left > 0:
            sizes.append(self._size[left])
            left -= sizes[-1]
        sizes.sort(reverse=True)
        if sizes:
            sizes[-1] += left
        return tuple(sizes)


def group(offers: Sequence[Sequence[Offer]]) -> tuple[list[int], float]:
    """Cuts slices into runs that share a launch, at the least total price.

    Slices come longest first; `offers[i]` are the launches that hold slice `i`, and so every one after it, widest
    first. Returns where each run ends, and the total price. Exact: fewer or shorter slices never cost more, so a run
    may as well fill its launch, and only as many ways are tried for a slice as there are offers for it.
    """
    count = len(offers)
    costs = [0.0] * (count + 1)
    stops = [0] * count
    for first in range(count - 1, -1, -1):
        best = math.inf
        for slots, price in offers[first]:
            stop = first + slots
            cost = price + costs[stop] if stop < count else price
            if cost < best * _GAIN:
                best, stops[first] = cost, min(stop, count)
        costs[first] = best
    ends = []
    stop = 0
    while stop < count:
        stop = stops[stop]
        ends.append(stop)
    return ends, costs[0]
