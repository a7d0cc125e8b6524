"""Where launches run one after the other: a stream of the GPU with captured graphs or without, or this thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from flame.engine.backends.fused.program import MOST_LAUNCHES
from flame.engine.machine import thread_cores, usable_cores

_SHORT_S = 300e-6
"""Launches below this are awaited awake: to wake a thread that sleeps takes some 40 us, a quarter of the shortest."""

_TRUSTED = 64
"""Launches that are awaited asleep before one is awaited awake again, which keeps a core busy as long as it takes."""

_running: dict[torch.device, threading.Semaphore] = {}

Steps = Callable[[], None]
"""Copies and kernels of one launch, put on the current stream."""


class Lane(Protocol):
    """Used by one thread at a time; lanes of one engine run side by side."""

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeros in host memory that launches read and copy to."""

    def record(self, steps: Steps) -> Steps:
        """What runs `steps` whenever it is called, and returns when they are done.

        Runs them once, over inputs in which nothing is in use, so that what fails always fails here.
        """

    def close(self) -> None:
        """Frees what was recorded; none of it may be called again."""


def short_or_long(run: Callable[..., None]) -> Steps:
    """Calls `run(short=...)`: a launch is taken to be short where the last one that was awaited awake was.

    For one thread at a time. How long a launch takes says nothing where its thread was asleep, since it may sleep on
    for as long again. So now and then one is awaited awake to know it, the first among them.
    """
    took, left = 0.0, 0

    def launch() -> None:
        nonlocal took, left
        awake = took < _SHORT_S or not left
        left = _TRUSTED if awake else left - 1
        began = time.perf_counter()
        run(short=awake)
        if awake:
            took = time.perf_counter() - began

    return launch


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
        # Both waits leave Python's lock to others, which asking the event again and again from here would not.
        self._asleep = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._awake = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._cores = usable_cores()

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def record(self, steps: Steps) -> Steps:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._run(steps)
        return short_or_long(partial(self._run, steps))

    def close(self) -> None:
        """Steps hold nothing beyond their memory."""

    def _done(self, short: bool) -> torch.cuda.Event:
        """Awake where the launch is short, and there is a core for every launch to wait on and one for the requests."""
        needed = MOST_LAUNCHES * len(_running)
        return self._awake if short and self._cores > needed and thread_cores() > needed else self._asleep

    def _run(self, steps: Steps, *, short: bool = False) -> None:
        done = self._done(short)
        with self._slots:
            try:
                with torch.cuda.stream(self._stream):
                    steps()
                    done.record(self._stream)
            except BaseException:
                # What was put there before the step that failed ends, before its memory can go to somebody else.
                self._stream.synchronize()
                raise
            done.synchronize()
