"""The two small dynamic programs of planning: covering a candidate list by launches, and grouping slices into launches.

Both know lengths and prices only. Prices are milliseconds; a price of infinity means "there is no such launch".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flame.orchestrator.kernels.grouping import GAIN, group_slices


class Cover:
    """The cheapest way to cover `n` candidates by pieces of given sizes, worked out once for every `n` up to `limit`.

    Piece sizes may repeat, and the last piece may be larger than what is left for it. `costs[n]` are the milliseconds
    of the cheapest cover of `n` candidates. Immutable after it is made.
    """

    def __init__(self, prices: Mapping[int, float], limit: int) -> None:
        sizes = sorted(prices, reverse=True)
        self.costs = [0.0] * (limit + 1)
        self._size = [0] * (limit + 1)
        for n in range(1, limit + 1):
            best = math.inf
            for size in sizes:
                cost = prices[size] + self.costs[n - size if n > size else 0]
                if cost < best * GAIN:
                    best, self._size[n] = cost, size
            self.costs[n] = best

    def lengths(self, n: int) -> tuple[int, ...]:
        """How many candidates each piece of the cheapest cover takes, longest first; they add up to `n`."""
        sizes, left = [], n
        while left > 0:
            sizes.append(self._size[left])
            left -= sizes[-1]
        sizes.sort(reverse=True)
        if sizes:
            sizes[-1] += left
        return tuple(sizes)


class Grouping:
    """The cheapest way to let slices share launches. Immutable.

    Slices are of classes, longest first, and what holds a slice of one class holds those of all later ones.
    `prices[i][j]` is that of a launch for up to `widths[j]` slices of class `i` or later ones; widest first.
    """

    def __init__(self, widths: Sequence[int], prices: Sequence[Sequence[float]]) -> None:
        self._widths = np.array(widths, np.int64)
        self._prices = np.array(prices, np.float64)
        self.cut([0] * len(prices))  # compiles or loads what cuts, so that the first plan need not

    def cut(self, counts: Sequence[int]) -> tuple[list[int], float]:
        """Cuts so many slices of each class, in their order, into runs that share a launch, at the least total price.

        Returns where each run ends, and the total price. Exact: fewer or shorter slices never cost more, so a run may
        as well fill its launch, and only as many ways are tried for a slice as there are widths.
        """
        many = sum(counts)
        costs, stops = np.empty(many + 1), np.empty(many, np.int64)
        runs = group_slices(np.array(counts, np.int64), self._widths, self._prices, costs, stops)
        return stops[:runs].tolist(), costs.item(0)
