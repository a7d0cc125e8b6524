"""Gated fusion: what the blocks say of a candidate, made one vector.

All of it is one kernel, whose tiles hold the rows of all blocks of some candidates, every head padded to a power of
two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.kernels.fusion.sizes import ROWS, FusionSizes
from flame.engine.kernels.fusion.triton import fusion
from flame.engine.kernels.kernel import Runtime, TritonKernel

__all__ = ["Fusion", "FusionSizes", "FusionWeights", "FusionWork"]


class FusionWeights(NamedTuple):
    """The weights of a fusion, columns of heads padded with zeros.

    `qkv` `[3, columns, columns]`, `ffn_in` `[columns, ffn]`, `ffn_out` `[ffn, columns]`, `squeeze`
    `[blocks, columns, squeezed]`, `excite` `[blocks, squeezed, columns]`; inputs before outputs. `vectors` fp32: biases
    of queries, keys, values, then ffn_out's bias, the norm's weight and bias, a bias of excite per block, each
    `[columns]`; ffn_in's bias `[ffn]`, squeeze's bias `[squeezed]`, temperatures `[scenarios]`.
    """

    qkv: Tensor
    ffn_in: Tensor
    ffn_out: Tensor
    squeeze: Tensor
    excite: Tensor
    vectors: Tensor


class FusionWork(NamedTuple):
    """What a launch writes: `wide` `[users, candidates, blocks * dim]` is the result, the rest belongs to it."""

    wide: Tensor
    scratch: tuple[Tensor, ...] = ()


class Fusion:
    """The fusion of one model in one kernel; for sizes that are `small`."""

    def __init__(self, sizes: FusionSizes, pointer: str) -> None:
        assert sizes.small, "these sizes are for WideFusion"
        self.sizes = sizes
        self._kernel = _kernel(sizes, pointer)

    @property
    def kernels(self) -> tuple[TritonKernel, ...]:
        return (self._kernel,)

    def pack(self, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> FusionWeights:
        """From the tensors of a gated fusion by its own names (`layer.qkv.weight`, `squeeze.bias`, ...)."""
        packed = _packed({name: tensor.detach().cpu().float() for name, tensor in weights.items()}, self.sizes)
        *matrices, vectors = packed
        return FusionWeights._make(
            [matrix.to(device, dtype).contiguous() for matrix in matrices] + [vectors.to(device)]
        )

    def work(self, users: int, candidates: int, dtype: torch.dtype, device: torch.device) -> FusionWork:
        """Memory for launches of up to `candidates` rows per user."""
        return FusionWork(torch.empty(users, candidates, self.sizes.width, dtype=dtype, device=device))

    def launch(
        self, runtime: Runtime, weights: FusionWeights, work: FusionWork, words: Tensor, x: Tensor, first_row: int
    ) -> Tensor:
        """Fuses the rows `first_row + c` of `x` `[users, blocks, rows, dim]` for all live candidates c.

        Returns `work.wide`. Candidate counts and scenarios are read from the headers at the start of `words`.
        """
        users, candidates, _ = work.wide.shape
        runtime.launch(
            self._kernel,
            (-(-candidates // self.sizes.tile), users),
            words,
            x,
            work.wide,
            *weights,
            first_row,
            *x.stride()[:3],
            *work.wide.stride()[:2],
        )
        return work.wide


def _kernel(sizes: FusionSizes, pointer: str) -> TritonKernel:
    matrices = dict.fromkeys(FusionWeights._fields[:-1], pointer)
    integers = ("first_row", "user_stride", "block_stride", "row_stride", "wide_user", "wide_row")
    return TritonKernel(
        name="fusion",
        function=fusion,
        signature={"words": "*i32", "x": pointer, "wide": pointer, **matrices, "vectors": "*fp32"}
        | dict.fromkeys(integers, "i32"),
        constants={
            "BLOCKS": sizes.blocks,
            "DIM": sizes.dim,
            "HEADS": sizes.heads,
            "HEAD": sizes.head,
            "PIECE": sizes.piece,
            "FFN": sizes.ffn_padded,
            "SQUEEZED": sizes.squeezed_padded,
            "RESIDUAL_FIRST": sizes.residual_first,
            "HEADER_WORDS": sizes.header_words,
            "SCENARIO_WORD": sizes.scenario_word,
            "COUNT_WORD": sizes.count_word,
            "ROWS": ROWS,
            "TILE": sizes.tile,
        },
        warps=4,
        stages=3,
        multiples_of_16=frozenset(integers[1:]) if sizes.dim % 16 == 0 else frozenset(),
    )


def _packed(weights: dict[str, Tensor], sizes: FusionSizes) -> tuple[Tensor, ...]:
    """The fields of `FusionWeights`, in fp32 on the CPU."""
    qkv = weights["layer.qkv.weight"][0].view(3, sizes.dim, sizes.dim)
    squeeze = weights["squeeze.weight"].view(-1, sizes.blocks, sizes.dim).permute(1, 2, 0)
    excite = weights["excite.weight"].view(sizes.blocks, sizes.dim, -1).transpose(1, 2)
    ffn_in = _rows(weights["layer.ffn_in.weight"][0].t(), sizes)
    ffn_out = _rows(weights["layer.ffn_out.weight"][0], sizes).t()
    vectors = [
        *weights["layer.qkv.bias"][0].view(3, sizes.dim),
        weights["layer.ffn_out.bias"][0],
        weights["layer.norm.weight"][0],
        weights["layer.norm.bias"][0],
        *weights["excite.bias"].view(sizes.blocks, sizes.dim),
    ]
    others = (
        _ended(weights["layer.ffn_in.bias"][0], sizes.ffn_padded),
        _ended(weights["squeeze.bias"], sizes.squeezed_padded),
        weights["layer.log_temperature"][0].exp(),
    )
    return (
        torch.stack([_rows(_rows(matrix, sizes).t(), sizes) for matrix in qkv]),
        _ended(ffn_in, sizes.ffn_padded),
        _ended(ffn_out.t(), sizes.ffn_padded).t(),
        torch.stack([_ended(_rows(matrix, sizes), sizes.squeezed_padded) for matrix in squeeze]),
        torch.stack([_ended(_rows(matrix.t(), sizes), sizes.squeezed_padded).t() for matrix in excite]),
        torch.cat([torch.cat([_rows(vector[:, None], sizes)[:, 0] for vector in vectors]), *others]),
    )


def _rows(matrix: Tensor, sizes: FusionSizes) -> Tensor:
    """`matrix` `[dim, n]` with the rows of every head padded with zeros: `[columns, n]`."""
    by_head = matrix.reshape(sizes.heads, sizes.head, -1)
    return torch.nn.functional.pad(by_head, (0, 0, 0, sizes.piece - sizes.head)).flatten(0, 1)


def _ended(tensor: Tensor, size: int) -> Tensor:
    """Zeros behind the last dimension, up to `size`."""
    return torch.nn.functional.pad(tensor, (0, size - tensor.shape[-1]))
