"""The dynamic program that groups slices into launches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flame.jit import Integer, short_kernel

GAIN = 1 - 1e-9
"""A way must be cheaper than the best so far by more than rounding; otherwise the one with fewer launches stays."""


@short_kernel
def group_slices(
    counts: NDArray[np.int64],
    widths: NDArray[np.int64],
    prices: NDArray[np.float64],
    costs: NDArray[np.float64],
    stops: NDArray[np.int64],
) -> Integer:
    """Cuts `n` slices, longest first, into runs that share a launch, at the least total price.

    There are `counts[i]` slices of class `i`, and a run that begins with one of them costs `prices[i, j]` if it holds
    at most `widths[j]` of them. Fills `costs` `[n + 1]`, `costs[k]` for all slices from `k` on, and puts where each run
    ends at the beginning of `stops` `[n]`. Returns how many runs there are.
    """
    count = len(stops)
    costs[count] = 0.0
    first = count
    for kind in range(len(counts) - 1, -1, -1):
        for _ in range(counts[kind]):
            first -= 1
            best = math.inf
            stops[first] = first + 1  # whatever the prices are, this ends
            for way in range(len(widths)):
                stop = min(first + widths[way], count)
                cost = prices[kind, way] + costs[stop]
                if cost < best * GAIN:
                    best = cost
                    stops[first] = stop
            costs[first] = best
    runs = 0
    stop = 0
    while stop < count:
        stop = stops[stop]
        stops[runs] = stop  # no later run begins as early as this
        runs += 1
    return runs
