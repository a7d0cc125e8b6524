"""What became of every request of a run, in arrays that are there before it: writing a number is all it costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flame.bench.load.client import OK, Reply
from flame.bench.load.record import Outcome, Seconds, Window
from flame.orchestrator.ticket import Scored

_NEVER = "timeout"
"""What a request is that was sent and not answered until the run was given up."""


class Record:
    """Rows by the number of the request, each written by one thread at a time; points of time on the sender's clock.

    `accepted` says that admission let it in, `reused` that it was scored against another's encoded history.
    """

    def __init__(self, most: int) -> None:
        self.sent = 0
        self.accepted = np.full(most, False)
        self.reused = np.full(most, False)
        self._due, self._sent, self._done = (np.full(most, np.nan) for _ in range(3))
        self._candidates = np.full(most, 0)
        self._stages = np.full((most, 2), np.nan)
        self._outcomes = [_NEVER] * most

    def __len__(self) -> int:
        """Requests that there is room for."""
        return len(self._due)

    @property
    def last_due(self) -> float:
        """When the last one was due."""
        return float(self._due[self.sent - 1])

    def sending(self, index: int, due: float, now: float, candidates: int) -> None:
        """Request `index` is about to be sent; they are sent in order."""
        self._due[index], self._sent[index], self._candidates[index] = due, now, candidates
        self.sent = index + 1

    def scored(self, index: int, now: float, scored: Scored) -> None:
        """It was answered."""
        self._outcomes[index], self._done[index] = OK, now
        self.reused[index] = scored.reused
        self._stages[index, 0], self._stages[index, 1] = scored.queue_us, scored.compute_us

    def failed(self, index: int, now: float, kind: str) -> None:
        """It was refused or came to nothing, for the reason of this kind."""
        self._outcomes[index], self._done[index] = kind, now

    def outcomes(self) -> list[Outcome]:
        """All that were sent, in order."""
        columns = (self._due, self._sent, self._done, self._candidates, self._stages)
        rows = zip(*(column[: self.sent].tolist() for column in columns), self._outcomes, strict=False)
        return [
            Outcome(due, sent, done, count, Reply(kind, {"queue": queue, "compute": compute}))
            for due, sent, done, count, (queue, compute), kind in rows
        ]

    def reuse_share(self, window: Window) -> float | None:
        """Of the requests due in `window` that were answered, the share that found its history encoded."""
        answered = self._due_in(window) & ~np.isnan(self._stages[: self.sent, 0])
        return float(self.reused[: self.sent][answered].mean()) if answered.any() else None

    def refusals_ms(self, window: Window) -> Seconds:
        """Milliseconds `[n]` from the sending of each request due in `window` that was not let in to its refusal."""
        refused = self._due_in(window) & ~self.accepted[: self.sent]
        taken: Seconds = 1e3 * (self._done - self._sent)[: self.sent][refused]
        return taken

    def in_time_share(self, window: Window, deadline_ms: float) -> float | None:
        """Of the requests due in `window` that were let in, the share that was answered within the deadline."""
        accepted = self._due_in(window) & self.accepted[: self.sent]
        latency = 1e3 * (self._done - self._due)[: self.sent]
        good = (latency <= deadline_ms) & ~np.isnan(self._stages[: self.sent, 0])
        return float(good[accepted].mean()) if accepted.any() else None

    def _due_in(self, window: Window) -> NDArray[np.bool_]:
        due = self._due[: self.sent]
        return (due >= window.start) & (due < window.end)
