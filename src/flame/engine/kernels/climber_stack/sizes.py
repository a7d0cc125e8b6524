"""The sizes of a stack, what the kernels take of them, and how its memory is laid out."""

from __future__ import annotations

from typing import NamedTuple

HEAD_DIM = 32
STATE_HEADER_BYTES = 256
MOST_PAIRS = 512
"""Users times blocks of a launch: the kernels keep what is to do for each in shared memory."""

_CONTROL_WORDS = 64
_COUNTER_STRIDE = 8
_HIDDEN = (48, 32, 16)


class StackHeader(NamedTuple):
    """The words of a user's packed header: how many, at which ones scenario and candidate count stand, and where the
    lengths of its sequences begin."""

    words: int
    scenario: int
    candidates: int
    lengths: int


class StackSizes(NamedTuple):
    """The sizes of a Climber's layers; `dim` is split evenly over the heads."""

    layers: int
    blocks: int
    heads: int
    dim: int
    ffn: int
    scenarios: int

    @property
    def hidden(self) -> int:
        """Columns of the hidden layer that go through shared memory at a time."""
        return next(columns for columns in _HIDDEN if self.ffn % columns == 0)

    @property
    def ffn_stages(self) -> int:
        return self.ffn // self.hidden

    @property
    def projection_bytes(self) -> int:
        """Weights of 32 columns of a projection, and their bias."""
        return 2 * HEAD_DIM * self.dim + 4 * HEAD_DIM

    @property
    def ffn_bytes(self) -> int:
        """A stage of the feed-forward net: hidden columns of both products, and the bias of the first."""
        return 4 * self.dim * self.hidden + 4 * self.hidden

    @property
    def norm_bytes(self) -> int:
        """Bias of the second product, weight and bias of the norm."""
        return 12 * self.dim

    @property
    def ffn_start(self) -> int:
        """Where the stages of the feed-forward net begin among a layer's bytes."""
        return 3 * self.heads * self.projection_bytes

    @property
    def ffn_stride(self) -> int:
        return _lines(self.ffn_bytes)

    @property
    def layer_bytes(self) -> int:
        """All weights of a layer of one block."""
        last = self.ffn_bytes + self.norm_bytes
        return _lines(self.ffn_start + (self.ffn_stages - 1) * self.ffn_stride + last)

    @property
    def slot_bytes(self) -> int:
        """The largest stage in shared memory: a head's weights, 128 keys and values, or the last of a layer."""
        return _lines(max(3 * self.projection_bytes, 128 * 4 * HEAD_DIM, self.ffn_bytes + self.norm_bytes))

    def state_bytes(self, capacity: int) -> int:
        """Bytes of a state's body for `capacity` events per sequence, a multiple of 128."""
        assert capacity % 128 == 0, f"capacity {capacity} is no multiple of 128"
        return self.layers * self.blocks * self.heads * capacity * 4 * HEAD_DIM

    def scratch_words(self, users: int) -> int:
        """int32 words of scratch for launches of up to `users` users."""
        return _CONTROL_WORDS + MOST_PAIRS + users * self.blocks * self.layers * self.heads * _COUNTER_STRIDE


def unsupported(sizes: StackSizes) -> str | None:
    """Why these kernels cannot run a Climber of such sizes; None where they can.

    They know wiring "flame", a history that sees all of itself and no relative bias, in bf16 on compute capability 9.0.
    """
    if sizes.dim != sizes.heads * HEAD_DIM:
        return f"heads of {sizes.dim / sizes.heads:g}, only {HEAD_DIM} is known"
    if not 1 <= sizes.heads <= 3:
        return f"{sizes.heads} heads, only 1 to 3 are known"
    if sizes.ffn % 16:
        return f"ffn {sizes.ffn} is no multiple of 16"
    return None


def _lines(count: int) -> int:
    """Bytes rounded up to whole cache lines."""
    return -(-count // 128) * 128
