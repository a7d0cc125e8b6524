"""What a request ends in. Not compiled (`native/compile.py`): mypyc would drop what the class statements say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from flame.errors import FlameError
from flame.records import Scores


class Scored(Struct, frozen=True):
    """Scores `[candidates, tasks]` of one request; microseconds before its first launch, and from there to its end.

    `reused` says that they were scored against a history that was encoded for another request. `spent_ms` is its share
    of the device time of its launches.
    """

    scores: Scores
    queue_us: float
    compute_us: float
    launches: int
    reused: bool = False
    spent_ms: float = 0.0


Outcome: TypeAlias = Scored | FlameError
"""What a request ends in."""

Done: TypeAlias = Callable[[Outcome], object]
"""Told the outcome of a request, once."""
