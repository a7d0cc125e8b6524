"""Weights of a linear layer as its kernel reads them: parts in whole column tiles, a norm before it folded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class LinearWeights(NamedTuple):
    """weight `[blocks, columns, inputs]`; fp32 bias and column_sums `[blocks, columns]`; columns in whole tiles.

    `column_sums` are the sums of the rounded rows of `weight`, zeros without a norm.
    """

    weight: Tensor
    bias: Tensor
    column_sums: Tensor


def pack(
    weight: Tensor,
    bias: Tensor | None,
    norm: tuple[Tensor, Tensor] | None,
    widths: Sequence[int],
    tile: int,
    precision: str,
) -> LinearWeights:
    """See `Linear.pack`; rows of `weight` of one part after the other, `widths` of them."""
    weight = weight.float()
    bias = torch.zeros(weight.shape[:2], device=weight.device) if bias is None else bias.float()
    if norm is not None:
        gain, shift = (tensor.double() for tensor in norm)
        bias = (bias + torch.einsum("bok,bk->bo", weight.double(), shift)).float()
        weight = (weight * gain[:, None]).float()
    rounded = _in_tiles(weight, widths, tile).to(_TYPES[precision])
    sums = rounded.double().sum(-1).float() if norm is not None else torch.zeros(rounded.shape[:2])
    return LinearWeights(rounded, _in_tiles(bias, widths, tile), sums.to(weight.device).contiguous())


def _in_tiles(outputs: Tensor, widths: Sequence[int], tile: int) -> Tensor:
    """`outputs` `[blocks, outputs, ...]` with every part filled up with zeros to whole tiles."""
    parts = []
    for part in torch.split(outputs, list(widths), 1):
        missing = -part.shape[1] % tile
        parts += [part, part.new_zeros(part.shape[0], missing, *part.shape[2:])]
    return torch.cat(parts, 1).contiguous()
