"""Device time of launches: graphs captured and replayed between events, all variants in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Run = Callable[[], object]
Samples = dict[str, NDArray[np.float64]]

_WARM_UP = 3


class Clock(Protocol):
    """How launches are repeated and timed on one device."""

    def recorded(self, run: Run) -> Run:
        """`run` as a captured graph, after warm-up; memory that it allocates stays the graph's."""

    def device_ms(self, run: Run) -> float:
        """Milliseconds of one call, from its first launch to the end of its last; waits for it."""

    def wait(self) -> None:
        """Until the device has nothing to do."""


class CudaClock:
    """Events on the current stream."""

    def recorded(self, run: Run) -> Run:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def device_ms(self, run: Run) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def wait(self) -> None:
        torch.cuda.synchronize()


class WallClock:
    """For a CPU, which has no graphs and nothing to wait for."""

    def recorded(self, run: Run) -> Run:
        for _ in range(_WARM_UP):
            run()
        return run

    def device_ms(self, run: Run) -> float:
        return wall_ms(run)

    def wait(self) -> None:
        """Calls return when they are done."""


def clock_of(device: torch.device) -> Clock:
    """The clock that fits a device."""
    return CudaClock() if device.type == "cuda" else WallClock()


def wall_ms(run: Run) -> float:
    """Milliseconds of one call by the wall."""
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


def interleaved(calls: Mapping[str, Callable[[], float]], rounds: int, tick: Callable[[int], object]) -> Samples:
    """What each call gives, `[rounds]`, in turns; every second round runs in the opposite order.

    Some rounds before count not; `tick` is called with the number of those that do, after each.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(-_WARM_UP, rounds):
        for name in names if index % 2 == 0 else reversed(names):
            taken = calls[name]()
            if index >= 0:
                samples[name].append(taken)
        tick(max(0, index + 1))
    return {name: np.array(values) for name, values in samples.items()}
