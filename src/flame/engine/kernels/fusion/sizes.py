"""The sizes of a gated fusion, and how they are padded."""

from __future__ import annotations

from typing import NamedTuple

ROWS = 64
"""Of a tile: all blocks of some candidates."""
_FFN_CHUNK = 64
_MOST_COLUMNS = 128
_MOST_BLOCKS = 4


class FusionSizes(NamedTuple):
    """One adaptive layer over `blocks` rows of `dim`, then a gate through `squeezed` units.

    `residual_first` is FLAME's wiring (`O + norm(ffn(O))`, `O = A + X`); otherwise `norm(X + ffn(A))`. Headers of
    `header_words` hold scenario and candidate count at the words given here.
    """

    blocks: int
    dim: int
    heads: int
    ffn: int
    scenarios: int
    squeezed: int
    residual_first: bool
    header_words: int
    scenario_word: int = 0
    count_word: int = 1

    @property
    def width(self) -> int:
        return self.blocks * self.dim

    @property
    def head(self) -> int:
        return self.dim // self.heads

    @property
    def piece(self) -> int:
        """Columns of a head, padded to a power of two that a product takes."""
        return max(16, power_of_two(self.head))

    @property
    def columns(self) -> int:
        """Of a row whose heads are padded."""
        return self.heads * self.piece

    @property
    def blocks_padded(self) -> int:
        return power_of_two(self.blocks)

    @property
    def ffn_padded(self) -> int:
        return -(-self.ffn // _FFN_CHUNK) * _FFN_CHUNK

    @property
    def squeezed_padded(self) -> int:
        return max(16, power_of_two(self.squeezed))

    @property
    def tile(self) -> int:
        """Candidates of a program of the small kernel, which has all their blocks."""
        return ROWS // self.blocks_padded

    @property
    def small(self) -> bool:
        """Whether one kernel holds all of it."""
        return self.columns <= _MOST_COLUMNS and self.blocks <= _MOST_BLOCKS and self.squeezed_padded <= _MOST_COLUMNS


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()
