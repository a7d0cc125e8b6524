"""One tile per model and architecture, never one per profile: a row's bits depend on it."""

from __future__ import annotations

from typing import NamedTuple


class AttentionTile(NamedTuple):
    """Query rows of a program, keys at a time, and how many chunks of keys are under way at once."""

    rows: int
    keys: int
    warps: int
    stages: int


def attention_tile(head_dim: int, precision: str, capability: int) -> AttentionTile:
    """The tile for heads of this size, for a compute capability (90 for 9.0)."""
    if precision == "fp32":
        # These products are done number by number, and all that they read lies in registers.
        if head_dim > 64:
            return AttentionTile(16, 32, 8, 1)
        return AttentionTile(32, 64 if head_dim <= 32 else 32, 4, 1)
    return AttentionTile(64, 64, 4, 2 if head_dim > 64 else 3)
