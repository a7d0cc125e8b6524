"""Launches that are graphs: captured once, then one call of the driver each."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import torch

from flame.engine.backends.fused.lanes import Steps, StreamLane, short_or_long

if TYPE_CHECKING:
    from flame.engine.backends.fused.replay import Replay


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
        # It needs the driver, which a machine without a GPU has not.
        from flame.engine.backends.fused.replay import Replay

        self._new_replay = Replay
        with torch.cuda.stream(self._stream):
            # PyTorch makes an event when it is recorded for the first time.
            self._asleep.record(self._stream)
            self._awake.record(self._stream)

    def record(self, steps: Steps) -> Steps:
        super().record(steps)
        graph = self._captured(steps)
        self._graphs.append(graph)
        launch = partial(self._launch, self._new_replay(self._stream, graph))
        # The first launch moves a graph to the device.
        launch()
        return short_or_long(launch)

    def close(self) -> None:
        while self._graphs:
            self._graphs.pop().reset()

    def _launch(self, replay: Replay, *, short: bool = False) -> None:
        with self._slots:
            try:
                replay(self._done(short))
            except BaseException:
                # What was put there ends before its memory can go to somebody else.
                self._stream.synchronize()
                raise

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
