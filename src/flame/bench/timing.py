"""Timing of calls on this machine: interleaved rounds, so that a slow minute hits every variant alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

PAUSE_S = 0.003
"""OpenVINO's threads were seen to spin for up to 1.2 ms, those of PyTorch and of our kernels hardly at all."""


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 2,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each call `[rounds]`, measured in turns; every second round runs in the opposite order.

    A short pause stands before each call: the worker threads of the one before may spin for a while when they have
    nothing to do, and would take the cores from this one. `warm_up` rounds are run and not counted; `tick` is called
    after each round (progress).
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(-warm_up, rounds):
        for name in names if index % 2 == 0 else reversed(names):
            time.sleep(PAUSE_S)
            start = time.perf_counter_ns()
            calls[name]()
            elapsed = time.perf_counter_ns() - start
            if index >= 0:
                samples[name].append(elapsed / 1e6)
        tick()
    return {name: np.array(values) for name, values in samples.items()}
