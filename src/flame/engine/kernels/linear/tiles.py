"""One tile per model and architecture: chosen by the layer's sizes, never by how many rows a launch has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Tile(NamedTuple):
    """A program's share: rows, columns, and inputs at a time; `stages` of the latter are under way at once.

    `registers` bounds those of a thread.
    """

    rows: int
    columns: int
    inputs: int
    warps: int
    stages: int
    registers: int | None = None


def linear_tile(widths: Sequence[int], inputs: int, precision: str, capability: int) -> Tile:
    """The tile of a layer whose parts have these widths, for a compute capability (90 for 9.0)."""
    if precision == "fp32":
        return Tile(64, _columns(widths, 64), _power(min(inputs, 32)), 4, 2)
    columns = _columns(widths, 128)
    if columns < 128:
        return Tile(64, columns, _power(min(inputs, 64)), 4, 3)
    # On 9.0 a warpgroup holds the sums of a whole tile, and two programs share a multiprocessor: one multiplies while
    # the other stores.
    return Tile(128, 128, _power(min(inputs, 64)), 4 if capability == 90 else 8, 3)


def _columns(widths: Sequence[int], most: int) -> int:
    """The widest tile of at most `most` columns that wastes none; narrow parts are filled up to a power of two."""
    while most > 64 and any(width % most for width in widths):
        most //= 2
    return min(most, _power(max(widths)))


def _power(count: int) -> int:
    """The next power of two, at least the 16 that a matrix instruction takes."""
    return max(16, 1 << (count - 1).bit_length())
