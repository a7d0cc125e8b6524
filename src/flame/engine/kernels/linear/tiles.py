"""One tile per model and architecture: chosen by the layer's sizes, never by how many rows a launch has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_LARGE_SHARED = (80, 90, 100)
"""Architectures with at least 163 KiB of shared memory for a block; the others have 99 KiB."""


class Tile(NamedTuple):
    """A program's share: rows, columns, and inputs at a time; `stages` of the latter are under way at once."""

    rows: int
    columns: int
    inputs: int
    warps: int
    stages: int


def linear_tile(widths: Sequence[int], inputs: int, precision: str, capability: int) -> Tile:
    """The tile of a layer whose parts have these widths, for a compute capability (90 for 9.0)."""
    if precision == "fp32":
        return Tile(64, _columns(widths, 64), _power(min(inputs, 32)), 4, 2)
    columns = _columns(widths, 256 if capability >= 90 and capability in _LARGE_SHARED else 128)
    wide = columns >= 128
    stages = 3 if capability in _LARGE_SHARED else 2
    return Tile(128 if wide else 64, columns, _power(min(inputs, 64)), 8 if wide else 4, stages)


def _columns(widths: Sequence[int], most: int) -> int:
    """The widest tile of at most `most` columns that wastes none; narrow parts are filled up to a power of two."""
    while most > 64 and any(width % most for width in widths):
        most //= 2
    return min(most, _power(max(widths)))


def _power(count: int) -> int:
    """The next power of two, at least the 16 that a matrix instruction takes."""
    return max(16, 1 << (count - 1).bit_length())
