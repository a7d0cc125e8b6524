"""A thread that looks after what may never end, and sleeps until the first limit of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls `look(now)` again and again until it is stopped, in a thread of its own: `look` gives up what is over its
    limit, and says when the next limit is. What begins meanwhile must have at least `limit_s` seconds from then on.
    """

    def __init__(self, limit_s: float, look: Callable[[float], float]) -> None:
        self._limit_s = limit_s
        self._look = look
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="flame-watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it; waits for a look that has begun."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        pause = self._limit_s
        while not self._stopping.wait(pause):
            now = time.monotonic()
            pause = max(0.0, min(self._look(now), now + self._limit_s) - time.monotonic())
