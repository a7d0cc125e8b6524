"""Weights and states in the order in which the tensor cores take them.

All are matrices of 8 x 8 bf16, 128 bytes each with rows of 16 bytes: `ldmatrix` makes operands of `mma` of them, and
`wgmma` takes them as they are. A matrix of weights has a row for each of 8 columns, and in it 8 steps of the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.kernels.climber_stack.sizes import HEAD_DIM, STATE_HEADER_BYTES, StackSizes

_LOG2_E = 1.4426950408889634


class Packed(NamedTuple):
    """`weights` uint8 `[layers, blocks, layer bytes]`; `scales` fp32
    `[layers, blocks, scenarios]`, log2(e) / temperature.
    ."""

    weights: Tensor
    scales: Tensor


def pack(sizes: StackSizes, weights: Mapping[str, Tensor]) -> Packed:
    """The weights of `layers.*` of a Climber, on the device where they are; matrices become bf16, the rest fp32."""
    layers = [_pack_layer(sizes, weights, f"layers.{layer}.") for layer in range(sizes.layers)]
    scales = [weights[f"layers.{layer}.log_temperature"].float() for layer in range(sizes.layers)]
    return Packed(torch.stack(layers).contiguous(), (torch.stack(scales).neg().exp() * _LOG2_E).contiguous())


def _pack_layer(sizes: StackSizes, weights: Mapping[str, Tensor], prefix: str) -> Tensor:
    """uint8 `[blocks, layer bytes]`."""
    parts = _pack_heads(sizes, weights[prefix + "qkv.weight"], weights[prefix + "qkv.bias"])
    assert _width(parts) == sizes.ffn_start
    parts += _pack_ffn(sizes, weights, prefix)
    missing = sizes.layer_bytes - _width(parts)
    return torch.cat([*parts, parts[0].new_zeros(sizes.blocks, missing)], 1)


def _pack_heads(sizes: StackSizes, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """A head after the other: weights and bias of its queries, weights of keys and values, their biases."""
    matrices = weight.reshape(sizes.blocks, 3, sizes.heads, HEAD_DIM, sizes.dim).transpose(-1, -2)
    biases = bias.reshape(sizes.blocks, 3, sizes.heads, HEAD_DIM)
    parts = []
    for head in range(sizes.heads):
        queries, keys, values = (columns_first(matrices[:, part, head]) for part in range(3))
        parts += [queries, _fp32(biases[:, 0, head]), keys, values]
        parts += [_fp32(biases[:, 1, head]), _fp32(biases[:, 2, head])]
    return parts


def _pack_ffn(sizes: StackSizes, weights: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    """Stage after stage: columns of the first product, rows of the second, bias of the first; then the norm."""
    first = weights[prefix + "ffn_in.weight"].transpose(-1, -2)
    second = weights[prefix + "ffn_out.weight"].transpose(-1, -2)
    bias = weights[prefix + "ffn_in.bias"]
    parts = []
    for stage in range(sizes.ffn_stages):
        part = slice(stage * sizes.hidden, (stage + 1) * sizes.hidden)
        parts += [columns_first(first[:, :, part]), steps_first(second[:, part]), _fp32(bias[:, part])]
        if stage < sizes.ffn_stages - 1:
            parts.append(parts[0].new_zeros(sizes.blocks, sizes.ffn_stride - sizes.ffn_bytes))
    last = ("ffn_out.bias", "norm.weight", "norm.bias")
    return parts + [_fp32(weights[prefix + name]) for name in last]


def columns_first(matrix: Tensor) -> Tensor:
    """`[blocks, sum, columns]` as bytes: 8 columns after the other, in each 8 steps of the sum after the other."""
    blocks, length, columns = matrix.shape
    split = matrix.reshape(blocks, length // 8, 8, columns // 8, 8)
    return _bf16(split.permute(0, 3, 1, 4, 2))


def steps_first(matrix: Tensor) -> Tensor:
    """`[blocks, sum, columns]` as bytes: 16 steps of the sum after the other, in each 8 columns after the other."""
    blocks, length, columns = matrix.shape
    split = matrix.reshape(blocks, length // 16, 2, 8, columns // 8, 8)
    return _bf16(split.permute(0, 1, 4, 2, 5, 3))


def read_state(sizes: StackSizes, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values in a state (uint8, header included), each bf16 `[layers, blocks, heads, capacity, 32]`."""
    capacity = int(memory[:4].view(torch.int32))
    body = memory[STATE_HEADER_BYTES:][: sizes.state_bytes(capacity)].view(torch.bfloat16)
    outer = (sizes.layers, sizes.blocks, sizes.heads)
    matrices = body.reshape(*outer, capacity // 8, 2, HEAD_DIM // 8, 8, 8).transpose(-3, -2)
    keys, values = (matrices.select(4, part).reshape(*outer, capacity, HEAD_DIM) for part in range(2))
    return keys, values


def _bf16(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).contiguous().reshape(tensor.shape[0], -1).view(torch.uint8)


def _fp32(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous().view(torch.uint8)


def _width(parts: list[Tensor]) -> int:
    return sum(part.shape[1] for part in parts)
