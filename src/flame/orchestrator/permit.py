"""The right to be worked on, and where in the work ahead. Not compiled (`native/compile.py`): mypyc would drop what the
class statements say."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from flame.orchestrator.outcome import Outcome
from flame.records import Priority


class Place(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One request in flight, or that might be.

    `first` says that its user has no other there, `cost_ms` what it costs alone, and `ahead_ms` what is ahead of it for
    each executor. It came when the clock was at `entered`, and is expected to be answered after `expected_ms`.
    """

    user: int
    priority: Priority
    first: bool
    cost_ms: float
    ahead_ms: float
    entered: float
    expected_ms: float


class Permit(msgspec.Struct, eq=False, gc=False):
    """The right of one request to be worked on, for its first `candidates` candidates: all, unless it is `truncated`.

    `release` gives it back, once.
    """

    place: Place
    candidates: int
    truncated: bool
    _leave: Callable[[Permit, Outcome | None], None]
    held: bool = True

    def release(self, outcome: Outcome | None = None) -> None:
        """Gives the permit back; the second call and later ones do nothing. Any thread.

        Later predictions learn from `outcome`, what became of the request, where it came to the queue.
        """
        self._leave(self, outcome)
