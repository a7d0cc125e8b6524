"""One tile per model and architecture, never one per profile: a row's bits depend on it."""

from __future__ import annotations

from typing import NamedTuple


class FeedForwardTile(NamedTuple):
    """Rows of a program, hidden units at a time, and how many chunks of weights are under way at once.

    `registers` bounds those of a thread.
    """

    rows: int
    chunk: int
    warps: int
    stages: int
    registers: int | None = None


def largest_dim(precision: str) -> int:
    """The largest dim whose rows fit a program's registers together with what becomes of them."""
    return 96 if precision == "fp32" else 128


def feed_forward_tile(dim: int, precision: str, capability: int) -> FeedForwardTile:
    """The tile for rows of this dim, for a compute capability (90 for 9.0)."""
    if precision == "fp32":
        return FeedForwardTile(32, 32, 8, 1) if dim <= 32 else FeedForwardTile(16, 16, 8, 1)
    if capability == 90 and dim <= 96:
        # Three programs share a multiprocessor; with a few more registers it would be two.
        return FeedForwardTile(64, 32, 4, 3, 168)
    return FeedForwardTile(64, 32, 4, 2)
