"""One tile per model and architecture: chosen by head sizes, never by how many rows or keys a launch has."""

from __future__ import annotations

from typing import NamedTuple


class AttentionTile(NamedTuple):
    """A program's share: query rows, and keys at a time, `stages` of which are under way at once."""

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


def attention_tile(dim: int, precision: str, capability: int) -> AttentionTile:
    """The tile for heads of at most `dim` elements, for a compute capability (90 for 9.0)."""
    if precision == "fp32":
        return AttentionTile(32, 32, 4, 1) if dim > 64 else AttentionTile(64, 32, 4, 2)
    if dim < 64:
        return AttentionTile(64, 64, 4, 2)
    if capability in (89, 120):
        return AttentionTile(128, 32, 8, 3) if dim <= 128 else AttentionTile(64, 32, 8, 1)
    if dim > 128:
        return AttentionTile(64, 32, 8, 2)
    return AttentionTile(128, 64, 8, 3 if capability >= 90 else 2)
