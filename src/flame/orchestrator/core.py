"""One core for the threads that hand Python's lock to each other.

Only one of them runs Python at a time, so several cores give them nothing; but with every hand-over what they work on
has to move to another core, and a sleeping core to be woken. On one core a request took half the processor time. That
is for threads that hand work on and wait; those that compute without the lock (on a CPU, those that launch) need cores.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import psutil

from flame.config import OrchestratorConfig
from flame.engine.backends.base import Engine

_log = logging.getLogger(__name__)

_FEWEST = 4
"""Cores of a process that has one to spare."""
_LOOK_S = 0.1


@cache
def shared_core() -> int | None:
    """The core of this process for such threads, always the same: the idlest when it was first asked for, for a tenth
    of a second. None where the process has too few cores, or the system binds no threads."""
    if not hasattr(os, "sched_setaffinity") or len(cores := sorted(os.sched_getaffinity(0))) < _FEWEST:
        return None
    busy = psutil.cpu_percent(_LOOK_S, percpu=True)
    random.shuffle(cores)  # Processes that start together on an idle machine must not choose the same.
    chosen = min(cores, key=lambda core: busy[core] if core < len(busy) else 0.0)
    _log.info("threads that launch share core %d", chosen)
    return chosen


def executors_core(engines: Sequence[Engine], config: OrchestratorConfig) -> int | None:
    """The core that executors of these engines share, if they do: several of one engine that fetches requests. For
    others these threads copy requests, without the lock."""
    share = config.one_core and len(engines) == 1 and config.executors > 1 and engines[0].gathers
    return shared_core() if share else None


def bind_thread(core: int | None) -> None:
    """Keeps the calling thread, and those it starts, on this core; None: does nothing."""
    if core is not None:
        _keep_on({core})


@contextmanager
def bound(core: int | None) -> Iterator[None]:
    """The calling thread is on this core meanwhile, and afterwards where it was before; None: does nothing."""
    before = usual_cores()
    bind_thread(core)
    try:
        yield
    finally:
        if core is not None:
            _keep_on(before)


def usual_cores() -> Collection[int]:
    """Those of the calling thread; none where the system binds no threads."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()


def use_cores(cores: Collection[int]) -> None:
    """Lets the calling thread use these, wherever the thread that started it was bound; none: does nothing."""
    if cores and usual_cores() != cores:
        _keep_on(cores)


def _keep_on(cores: Collection[int]) -> None:
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        _log.warning("cannot bind a thread to cores %s: %s; it stays on others", sorted(cores), error)
