"""Weights of the feed-forward half as its kernels read them: inputs before outputs, filled up with zeros."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch


class ProjectionWeights(NamedTuple):
    """`weight` `[blocks, dim, 3 * dim]` in the precision, `bias` fp32 `[blocks, 3 * dim]`; dims are padded."""

    weight: torch.Tensor
    bias: torch.Tensor


class FeedForwardWeights(NamedTuple):
    """Matrices `[blocks, inputs, outputs]` in the precision, vectors `[blocks, outputs]` in fp32; sizes are padded."""

    weights_in: torch.Tensor
    bias_in: torch.Tensor
    weights_out: torch.Tensor
    bias_out: torch.Tensor
    gain: torch.Tensor
    shift: torch.Tensor


class Pieces(NamedTuple):
    """A row as pieces, each a power of two wide and no longer than the one before it."""

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, dim: int) -> Pieces:
        """As few pieces as the dim takes, filled up to a multiple of 16: products need that many."""
        padded = -(-dim // 16) * 16
        return cls(tuple(1 << bit for bit in reversed(range(padded.bit_length())) if padded >> bit & 1))

    @property
    def padded(self) -> int:
        return sum(self.sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each piece starts; last, where the row ends."""
        return tuple(itertools.accumulate(self.sizes, initial=0))


def pack_projection(weight: torch.Tensor, bias: torch.Tensor, padded: int, dtype: torch.dtype) -> ProjectionWeights:
    """See `FeedForward.pack_projection`; rows are filled up to `padded`."""
    blocks, _, dim = weight.shape
    packed = weight.new_zeros(blocks, padded, 3, padded, dtype=dtype)
    packed[:, :dim, :, :dim] = weight.view(blocks, 3, dim, dim).permute(0, 3, 1, 2)
    vector = bias.new_zeros(blocks, 3, padded, dtype=torch.float32)
    vector[:, :, :dim] = bias.view(blocks, 3, dim)
    return ProjectionWeights(packed.view(blocks, padded, 3 * padded), vector.view(blocks, 3 * padded))


def filled(tensor: torch.Tensor, sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """`tensor` `[blocks, ...]` with zeros behind it up to `sizes`."""
    packed = tensor.new_zeros(tensor.shape[0], *sizes, dtype=dtype)
    packed[(slice(None), *(slice(size) for size in tensor.shape[1:]))] = tensor
    return packed
