"""One tile per model and architecture, never one per profile: a row's bits depend on it."""

from __future__ import annotations

from typing import NamedTuple


class FeedForwardTile(NamedTuple):
    """Rows of a program, hidden units at a time, and how many chunks of weights are under way at once."""

    rows: int
    chunk: int
    warps: int
    stages: int


def feed_forward_tile(dim: int, precision: str, capability: int) -> FeedForwardTile:
    """The tile for rows of this dim, for a compute capability (90 for 9.0)."""
    if precision == "fp32":
        return FeedForwardTile(32, 32, 4, 1)
    return FeedForwardTile(64, 64, 4, 2)
