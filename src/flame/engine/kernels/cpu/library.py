"""A compiled library as Python functions, the counterpart of `src/functions.h`. Calls release the interpreter lock."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RANK, ENCODE, SCORE = 0, 1, 2

_STATUS = {
    1: "a state has less room than the history needs",
    2: "an id, category, action or scenario is outside its table",
    3: "a length or a candidate count is outside the buffer's profile",
    4: "nothing was encoded into a state yet",
    5: "a state holds more events than the buffer's profile has",
    6: "a state holds fewer events than the prefix that is to be appended to",
}


class LaunchError(Exception):
    """A launch was refused; the message says why."""


class _Shape(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int32) for name in ("users", "events", "candidates", "events_start", "candidates_start")
    )


class Library:
    """The functions of one shared library, and the weights it reads.

    `weights` are float32 arrays in the order of the C++ struct, None where the model has no such tensor; they are
    kept alive here and must not be written.
    """

    def __init__(self, path: Path, weights: Sequence[NDArray[np.float32] | None]) -> None:
        self._functions = ctypes.CDLL(str(path))
        self._declare()
        self._arrays = [None if array is None else np.ascontiguousarray(array, np.float32) for array in weights]
        pointers = [None if array is None else array.ctypes.data for array in self._arrays]
        expected = self._functions.flame_weight_count()
        assert len(pointers) == expected, f"the library wants {expected} weights, got {len(pointers)}"
        self._pointers = (ctypes.c_void_p * len(pointers))(*pointers)
        self._workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()

    def state(self, events: int) -> StateMemory:
        """Room for a history of `events` events in each sequence."""
        memory = StateMemory(self._functions.flame_state_bytes(events))
        self._functions.flame_state_reset(memory.address, events)
        return memory

    def workspace(self, shape: Sequence[int], threads: int) -> Workspace:
        """Memory and threads for launches of one profile.

        `shape` is users, events, candidates, events_start, candidates_start of the packed buffer.
        """
        handle = self._functions.flame_open(self._pointers, ctypes.byref(_Shape(*shape)), threads)
        if not handle:
            raise MemoryError(f"no memory or threads for a workspace of shape {tuple(shape)}")
        workspace = Workspace(self._functions, handle, self)
        self._workspaces.add(workspace)
        return workspace

    def close(self) -> None:
        """Closes all workspaces; the weights may be freed afterwards."""
        for workspace in tuple(self._workspaces):
            workspace.close()

    def _declare(self) -> None:
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        for name, result, arguments in (
            ("flame_weight_count", ctypes.c_int64, []),
            ("flame_state_bytes", ctypes.c_int64, [integer]),
            ("flame_state_reset", None, [pointer, integer]),
            ("flame_open", pointer, [pointer, pointer, integer]),
            ("flame_launch", integer, [pointer, integer, pointer, integer, pointer, pointer]),
            ("flame_poison", None, [pointer]),
            ("flame_close", None, [pointer]),
        ):
            function = getattr(self._functions, name)
            function.restype, function.argtypes = result, arguments


class StateMemory:
    """The encoded history of one user: one block of memory that starts on a cache line."""

    def __init__(self, nbytes: int) -> None:
        self._memory = np.empty(nbytes + 64, np.uint8)
        self.nbytes = nbytes
        self.address = -(-self._memory.ctypes.data // 64) * 64


class Workspace:
    """Working memory and a pool of threads; one launch at a time."""

    def __init__(self, functions: ctypes.CDLL, handle: int, library: Library) -> None:
        self._functions = functions
        self._handle: int | None = handle
        self._library = library

    def launch(self, mode: int, words: int, users: int, scores: int, states: Sequence[StateMemory]) -> None:
        """Runs one launch; `words` and `scores` are addresses. Raises `LaunchError`."""
        assert self._handle is not None, "the workspace is closed"
        addresses = (ctypes.c_void_p * len(states))(*(state.address for state in states))
        status = self._functions.flame_launch(self._handle, mode, words, users, scores, addresses)
        if status:
            raise LaunchError(_STATUS[status])

    def poison(self) -> None:
        """Fills all working memory with NaN, for tests: a launch must not read what it has not written."""
        self._functions.flame_poison(self._handle)

    def close(self) -> None:
        """Ends the threads and frees the memory; may be called again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._functions.flame_close(handle)

    def __del__(self) -> None:
        self.close()
