"""The sizes of a multi-task head, and how they are padded and cut."""

from __future__ import annotations

from typing import NamedTuple

_MOST_PIECES = 8
_MOST_TOGETHER = 1024
_CHUNK = 128


class ExpertSizes(NamedTuple):
    """`experts` networks `inputs -> hidden -> dim`, mixed per task, towers `dim -> tower_hidden -> 1`.

    `sigmoids` says for every task whether a sigmoid follows. The candidate count is word `count_word` of a header of
    `header_words`.
    """

    inputs: int
    experts: int
    hidden: int
    dim: int
    tower_hidden: int
    sigmoids: tuple[bool, ...]
    header_words: int
    count_word: int = 1
    most_chunk: int = _CHUNK
    narrow: bool = False

    @property
    def tasks(self) -> int:
        return len(self.sigmoids)

    @property
    def step(self) -> int:
        """Inputs of one piece of a product."""
        if self.narrow:
            return 16
        return 32 if self.inputs <= 32 else 64

    @property
    def inputs_padded(self) -> int:
        return _whole(self.inputs, self.step)

    @property
    def resident(self) -> bool:
        """Whether a tile's inputs are kept while its hidden units are done one chunk after the other."""
        return not self.narrow and self.inputs_padded // self.step <= _MOST_PIECES

    @property
    def experts_padded(self) -> int:
        return max(16, _power_of_two(self.experts))

    @property
    def chunk(self) -> int:
        """Hidden units that are summed together."""
        return min(self.most_chunk, max(16, _power_of_two(self.hidden)))

    @property
    def chunks(self) -> int:
        return -(-self.hidden // self.chunk)

    @property
    def hidden_padded(self) -> int:
        return self.chunks * self.chunk

    @property
    def dim_padded(self) -> int:
        return max(16, _power_of_two(self.dim))

    @property
    def tower_chunk(self) -> int:
        """Hidden units of a tower that a program holds at a time."""
        return min(16 if self.narrow else 64, max(16, _power_of_two(self.tower_hidden)))

    @property
    def tower_padded(self) -> int:
        return _whole(self.tower_hidden, self.tower_chunk)

    @property
    def together(self) -> bool:
        """Whether all experts' outputs for a tile are held at once."""
        return _power_of_two(self.experts) * self.dim_padded <= _MOST_TOGETHER


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
