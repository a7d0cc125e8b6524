"""Hand-overs of Python's lock: who waits for it, and how others let them have it soon.

A thread that comes back from work without the lock waits for whoever holds it, for up to a switch interval where that
thread computes on and on. So those who wait after a launch raise a flag, by code that needs no lock, and threads that
do one small thing after the other look at the flags between two of them.
"""

from __future__ import annotations

import itertools
import os
import sys

import numpy as np
from numpy.typing import NDArray

_FLAGS = bytearray(256)
_RAISED = 1
_INTERVAL_S = 1e-3
_seats = itertools.count()


class Flag:
    """The flag of one place where threads wait, one at a time. Two of very many may share one: they are only hints.

    Code without the lock raises it by setting `flags[place]` to 1, just before it waits for the lock.
    """

    def __init__(self) -> None:
        self.flags: NDArray[np.uint8] = np.frombuffer(_FLAGS, np.uint8)
        self.place = next(_seats) % len(_FLAGS)

    def lower(self) -> None:
        """The thread has the lock."""
        _FLAGS[self.place] = 0


def give_way() -> None:
    """Hands the lock over to a thread that waits for it behind a launch, if there is one on the calling thread's core.

    For threads that are bound to the core of those who wait: on another core they would be woken too late to find the
    lock free.
    """
    if _RAISED in _FLAGS:
        os.sched_yield()


def shorten_interval() -> None:
    """Lets threads of this process that wait for the lock have it after 1 ms instead of Python's 5.

    It is for a whole process, so that a program calls it and no library.
    """
    sys.setswitchinterval(min(_INTERVAL_S, sys.getswitchinterval()))
