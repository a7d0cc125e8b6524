"""Where launches run one after the other: a stream of the GPU with captured graphs or without, or this thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import torch

from flame.engine.backends.fused.program import MOST_LAUNCHES

_running: dict[torch.device, threading.Semaphore] = {}

Steps = Callable[[], None]
"""Copies and kernels of one launch, put on the current stream."""


class Lane(Protocol):
    """Used by one thread at a time; lanes of one engine run side by side."""

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeros in host memory that launches copy from and to."""

    def record(self, steps: Steps) -> Steps:
        """What runs `steps` whenever it is called, and returns when they are done.

        Runs them once, over inputs in which nothing is in use, so that what fails always fails here.
        """

    def close(self) -> None:
        """Frees what was recorded; none of it may be called again."""


class HostLane:
    """For an interpreter, which knows no streams."""

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def record(self, steps: Steps) -> Steps:
        return steps

    def close(self) -> None:
        """Nothing is held."""


class StreamLane:
    """A stream of its own, onto which every launch puts its steps one by one.

    A launch waits for a place while as many run on the device as programs count on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots = _running.setdefault(device, threading.Semaphore(MOST_LAUNCHES))
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # A thread that waits sleeps: the cores belong to the requests.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def record(self, steps: Steps) -> Steps:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._run(steps)
        return lambda: self._run(steps)

    def close(self) -> None:
        """Steps hold nothing beyond their memory."""

    def _run(self, steps: Steps) -> None:
        with self._slots:
            with torch.cuda.stream(self._stream):
                steps()
                self._done.record(self._stream)
            self._done.synchronize()


class GraphLane(StreamLane):
    """A stream of its own with a graph for everything recorded, so that a launch is one call of the driver.

    Its graphs share one memory pool, for what PyTorch's operations allocate while they are captured. Another lane's
    may run at the same time, so it has a pool of its own.
    """

    _capturing = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, steps: Steps) -> Steps:
        super().record(steps)
        graph = self._captured(steps)
        self._graphs.append(graph)
        replay = graph.replay
        # The first launch moves a graph to the device.
        self._run(replay)
        return lambda: self._run(replay)

    def close(self) -> None:
        while self._graphs:
            self._graphs.pop().reset()

    def _captured(self, steps: Steps) -> torch.cuda.CUDAGraph:
        """Other threads go on allocating and launching meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with self._capturing, torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, "thread_local")
            try:
                steps()
            finally:
                graph.capture_end()
        return graph
