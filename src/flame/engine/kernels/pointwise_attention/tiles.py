"""One tile per model and architecture: chosen by head sizes, never by how many rows or keys a launch has."""

from __future__ import annotations

from typing import NamedTuple


class AttentionTile(NamedTuple):
    """A program's share: query rows, and keys at a time, `stages` of which are under way at once.

    `registers` bounds those of a thread.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


def attention_tile(dim: int, precision: str, capability: int) -> AttentionTile:
    """The tile for heads of at most `dim` elements, 128 at most, for a compute capability (90 for 9.0)."""
    if precision == "fp32":
        return AttentionTile(32, 32, 4, 1)
    if dim < 64:
        return AttentionTile(64, 64, 4, 2)
    if capability in (89, 120):
        return AttentionTile(128, 32, 8, 3)
    if capability == 90:
        # Two programs share a multiprocessor, so that one may multiply while the other does its silu: 6 to 18 % faster.
        return AttentionTile(128, 32, 8, 3, 128)
    return AttentionTile(128, 64, 8, 3 if capability > 90 else 2)
