"""When requests are due in open loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flame.errors import ConfigError

MOST_ARRIVALS = 5_000_000
"""Bound on the requests of one run, so that a mistyped rate does not fill the memory."""


def poisson(rate: float, duration_s: float, seed: int) -> NDArray[np.float64]:
    """Seconds after the start at which requests are due `[n]`, increasing, all below `duration_s`.

    Gaps are independent and exponential with mean `1 / rate`; so `n` itself is random (Poisson).
    """
    if rate <= 0 or duration_s <= 0:
        raise ConfigError(f"arrivals need a rate and a duration above 0, got {rate}/s for {duration_s} s")
    expected = rate * duration_s
    if expected > MOST_ARRIVALS:
        raise ConfigError(f"{rate}/s for {duration_s} s are {expected:.0f} requests; at most {MOST_ARRIVALS} in a run")
    generator = np.random.default_rng([seed, 2])
    times: NDArray[np.float64] = np.empty(0)
    while not len(times) or times[-1] < duration_s:
        gaps = generator.exponential(1 / rate, int(expected + 4 * expected**0.5) + 16)
        times = np.concatenate([times, (times[-1] if len(times) else 0.0) + np.cumsum(gaps)])
    return times[times < duration_s]
