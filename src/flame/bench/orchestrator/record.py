"""What became of every request of a run, in arrays that are there before it: writing a number is all it costs."""

from __future__ import annotations

import math
from array import array

import numpy as np
from numpy.typing import NDArray

from flame.bench.load.client import OK, Reply
from flame.bench.load.record import Outcome, Seconds, Window
from flame.orchestrator.outcome import Scored

_NEVER = "timeout"
"""What a request is that was sent and not answered until the run was given up."""


class Record:
    """Rows by the number of the request, each written by one thread at a time; points of time on the sender's clock.

    The arrays are Python's own, which take a number faster than NumPy's do, and lists of numbers would make the memory
    of a run grow.
    """

    def __init__(self, most: int) -> None:
        self.sent = 0
        self._due, self._sent, self._done, self._queue_us, self._compute_us = (
            array("d", [math.nan]) * most for _ in range(5)
        )
        self._candidates = array("q", [0]) * most
        self._accepted, self._reused = (array("b", [False]) * most for _ in range(2))
        self._outcomes = [_NEVER] * most

    def __len__(self) -> int:
        """Requests that there is room for."""
        return len(self._due)

    @property
    def last_due(self) -> float:
        """When the last one was due."""
        return self._due[self.sent - 1]

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Which of those that were sent `[sent]` admission let in."""
        return np.asarray(self._accepted, np.bool_)[: self.sent]

    def sending(self, index: int, due: float, now: float, candidates: int) -> None:
        """Request `index` is about to be sent; they are sent in order."""
        self._due[index] = due
        self._sent[index] = now
        self._candidates[index] = candidates
        self.sent = index + 1

    def admitted(self, index: int) -> None:
        """Admission let it in."""
        self._accepted[index] = True

    def scored(self, index: int, now: float, scored: Scored) -> None:
        """It was answered."""
        self._outcomes[index] = OK
        self._done[index] = now
        self._queue_us[index] = scored.queue_us
        self._compute_us[index] = scored.compute_us
        if scored.reused:
            self._reused[index] = True

    def failed(self, index: int, now: float, kind: str) -> None:
        """It was refused or came to nothing, for the reason of this kind."""
        self._outcomes[index] = kind
        self._done[index] = now

    def outcomes(self) -> list[Outcome]:
        """All that were sent, in order."""
        columns = self._due, self._sent, self._done, self._candidates, self._queue_us, self._compute_us
        rows = zip(*(column[: self.sent] for column in columns), self._outcomes, strict=False)
        return [
            Outcome(due, sent, done, count, Reply(kind, {"queue": queue, "compute": compute}))
            for due, sent, done, count, queue, compute, kind in rows
        ]

    def reuse_share(self, window: Window) -> float | None:
        """Of the requests due in `window` that were answered, the share that found its history encoded."""
        reused = np.asarray(self._reused)[: self.sent][self._due_in(window) & self._answered()]
        return float(reused.mean()) if len(reused) else None

    def refusals_ms(self, window: Window) -> Seconds:
        """Milliseconds `[n]` from the sending of each request due in `window` that was not let in to its refusal."""
        taken = 1e3 * (self._of(self._done) - self._of(self._sent))
        return taken[self._due_in(window) & ~self.accepted]

    def in_time_share(self, window: Window, deadline_ms: float) -> float | None:
        """Of the requests due in `window` that were let in, the share that was answered within the deadline."""
        latency = 1e3 * (self._of(self._done) - self._of(self._due))
        good = ((latency <= deadline_ms) & self._answered())[self._due_in(window) & self.accepted]
        return float(good.mean()) if len(good) else None

    def _answered(self) -> NDArray[np.bool_]:
        return ~np.isnan(self._of(self._queue_us))

    def _due_in(self, window: Window) -> NDArray[np.bool_]:
        due = self._of(self._due)
        return (due >= window.start) & (due < window.end)

    def _of(self, column: array[float]) -> Seconds:
        """Of those that were sent."""
        return np.asarray(column)[: self.sent]
