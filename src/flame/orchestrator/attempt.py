"""What an executor does that may never end: who is first, the thread that comes back from it or the watchdog."""

from __future__ import annotations

import math
import threading
import time


class Abandoned(Exception):
    """The watchdog has given the attempt up: its requests are answered, and its thread must touch nothing of them."""


class Attempt:
    """One launch or one rebuild of an executor. It ends once: for its own thread by `end`, or by `abandon`.

    Time counts from `begin`; before that, the host still reads request buffers, and nobody may give it up. `times` are
    when it began and when its thread was back, as far as it came.
    """

    __slots__ = ("_limit_s", "_lock", "abandoned", "ended", "times", "until")

    def __init__(self, limit_s: float = math.inf) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self.until = math.inf
        self.times: list[float] = []
        self.ended = False
        self.abandoned = False

    def begin(self) -> None:
        """From here on the engine has the thread, which may not come back."""
        now = time.monotonic()
        self.times.append(now)
        self.until = now + self._limit_s

    def end(self) -> None:
        """The thread is back: nobody gives it up any more. Raises `Abandoned` where somebody has."""
        with self._lock:
            if self.abandoned:
                raise Abandoned
            self.ended = True
            self.times.append(time.monotonic())

    def abandon(self) -> bool:
        """Gives the attempt up, unless it has ended; whether it is given up."""
        with self._lock:
            self.abandoned = not self.ended
            return self.abandoned
