"""Faults on demand: wraps any engine, and lets its launches and allocations fail, wait or hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.spec import Profile
from flame.errors import InvalidLaunch

PATIENCE_S = 60
GARBAGE = np.array(np.nan, np.float32).view(np.int32)

When = Callable[[str, LaunchBuffers], bool]
"""Whether this launch of a kind (rank, encode, score) is meant; buffers are filled by then."""


def until(condition: Callable[[], bool]) -> None:
    """Waits until it is so."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def never(kind: str, buffers: LaunchBuffers) -> bool:
    return False


def nth(*numbers: int, kinds: Sequence[str] = ("rank", "encode", "score")) -> When:
    """The launches of these kinds with these numbers, the next being number 1."""
    lock, count = threading.Lock(), 0

    def when(kind: str, buffers: LaunchBuffers) -> bool:
        nonlocal count
        with lock:
            count += kind in kinds
            return kind in kinds and count in numbers

    return when


class FaultyEngine(Engine):
    """Another engine, whose launches can be made to

    - stop at `gate` while it is closed, those of the kinds in `gated`;
    - fail where `fails` says so, with what `error` makes, after their buffers were spoiled;
    - be refused, as if they had been asked for something wrong, where `refuses` says so;
    - hang where `hangs` says so, until `release` is called; then they go on, and write what they would have written.

    Allocations fail as long as `allocates` is False. `log` has the kind and profile of every launch, `entered` counts
    them, and `hanging` those that hang.
    """

    def __init__(self, engine: Engine) -> None:
        self.inner = engine
        self.spec, self.profiles, self.costs = engine.spec, engine.profiles, engine.costs
        self.backend, self.device, self.precision = engine.backend, engine.device, engine.precision
        self.append_tile, self.gathers = engine.append_tile, engine.gathers
        self.gate = threading.Event()
        self.gate.set()
        self.gated = {"rank", "encode", "score"}
        self.entered = threading.Semaphore(0)
        self.hanging = threading.Semaphore(0)
        self.fails: When = never
        self.refuses: When = never
        self.hangs: When = never
        self.error: Callable[[], BaseException] = lambda: RuntimeError("device memory at 0xdeadbeef is gone")
        self.allocates = True
        self.allocated = 0
        self.log: list[tuple[str, Profile]] = []
        self._released = threading.Event()

    def release(self) -> None:
        """Lets go on what hangs; what hangs from now on waits for the next call."""
        released, self._released = self._released, threading.Event()
        released.set()

    def heal(self) -> None:
        """No more faults."""
        self.fails = self.refuses = self.hangs = never
        self.allocates = True
        self.gate.set()
        self.release()

    def buffers(self, profile: Profile) -> LaunchBuffers:
        self._allocate()
        return self.inner.buffers(profile)

    def state(self, history: int) -> HistoryState:
        self._allocate()
        return self.inner.state(history)

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        self._pass("rank", buffers)
        self.inner.rank(buffers, users)

    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        self._pass("encode", buffers)
        self.inner.encode(buffers, states)

    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        self._pass("score", buffers)
        self.inner.score(buffers, states)

    def close(self) -> None:
        self.inner.close()

    def _allocate(self) -> None:
        if not self.allocates:
            raise torch.OutOfMemoryError("CUDA out of memory (so says the test)")
        self.allocated += 1

    def _pass(self, kind: str, buffers: LaunchBuffers) -> None:
        self.log.append((kind, buffers.profile))
        released = self._released
        self.entered.release()
        if kind in self.gated:
            assert self.gate.wait(PATIENCE_S), "the test forgot to open the gate"
        if self.refuses(kind, buffers):
            raise InvalidLaunch("this launch is not to the engine's taste")
        if self.fails(kind, buffers):
            buffers.words[:] = GARBAGE
            raise self.error()
        if self.hangs(kind, buffers):
            self.hanging.release()
            assert released.wait(PATIENCE_S), "the test forgot to release what hangs"
