"""A captured graph, launched and awaited by one call that leaves Python's lock to others only once.

A thread that gives the lock up waits up to the switch interval until it has it back from one that computes. So what
matters is how often a launch gives it up, and how much Python lies between: PyTorch takes a call for every step.
"""

from __future__ import annotations

import llvmlite.binding
import numpy as np
import torch
from cuda.bindings import driver
from numba import types
from numpy.typing import NDArray

from flame.engine.kernels.driver import answer
from flame.handover import Flag
from flame.jit import Integer, kernel

llvmlite.binding.load_library_permanently("libcuda.so.1")

_one = types.int32(types.uintp)
_push = types.ExternalFunction("cuCtxPushCurrent_v2", _one)
_pop = types.ExternalFunction("cuCtxPopCurrent_v2", _one)
_launch = types.ExternalFunction("cuGraphLaunch", types.int32(types.uintp, types.uintp))
_record = types.ExternalFunction("cuEventRecord", types.int32(types.uintp, types.uintp))
_wait = types.ExternalFunction("cuEventSynchronize", _one)

_CONTEXT, _STREAM, _GRAPH, _EVENT, _POPPED, _HANDLES = range(6)
"""Handles of the driver; the popped context is written."""


class Replay:
    """Launches of `graph` on `stream`, both the caller's. Used by one thread at a time, whatever its device is."""

    def __init__(self, stream: torch.cuda.Stream, graph: torch.cuda.CUDAGraph) -> None:
        self._handles = np.zeros(_HANDLES, np.uint64)
        self._address = self._handles.ctypes.data
        self._flag = Flag()
        with torch.cuda.device(stream.device):
            self._handles[_CONTEXT] = int(answer("the CUDA context", driver.cuCtxGetCurrent()))
        self._handles[_STREAM], self._handles[_GRAPH] = stream.cuda_stream, graph.raw_cuda_graph_exec()

    def __call__(self, done: torch.cuda.Event) -> None:
        """Returns when the launch is done; `done`, which was recorded before, says how the thread waits.

        Raises `KernelError` with the driver's words.
        """
        self._handles[_EVENT] = done.cuda_event
        status = _replay(self._handles, self._address, self._flag.flags, self._flag.place)
        self._flag.lower()
        answer("a captured graph", (driver.CUresult(status),))


@kernel
def _replay(handles: NDArray[np.uint64], at: Integer, flags: NDArray[np.uint8], place: Integer) -> Integer:
    status = _push(handles[_CONTEXT])
    if status != 0:
        return status
    status = _launch(handles[_GRAPH], handles[_STREAM])
    if status == 0:
        status = _record(handles[_EVENT], handles[_STREAM])
    if status == 0:
        status = _wait(handles[_EVENT])
    popped = _pop(at + 8 * _POPPED)
    flags[place] = 1
    return popped if status == 0 else status
