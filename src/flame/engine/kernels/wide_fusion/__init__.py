"""Gated fusion of layers that are too large for one kernel: seven launches over tiles of rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.kernels.fusion import Fusion
from flame.engine.kernels.fusion.sizes import FusionSizes, power_of_two
from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.wide_fusion.triton import attend, norm, product

__all__ = ["AnyFusion", "WideFusion", "WideWeights", "WideWork", "fusion_of"]

_TILE, _TILE_FP32 = (64, 128, 64), (32, 64, 32)
"""Rows and columns of a product's tile, and its inputs at a time; fp32 takes more registers."""
_ATTEND_ROWS, _NORM_ROWS = 16, 4
_STRIDES = ("user_stride", "block_stride", "row_stride")


class WideWeights(NamedTuple):
    """Matrices `[inputs, outputs]` in the program's precision; biases, `norm` (gain, then shift) and `temperatures`
    in fp32."""

    qkv: Tensor
    qkv_bias: Tensor
    ffn_in: Tensor
    ffn_in_bias: Tensor
    ffn_out: Tensor
    ffn_out_bias: Tensor
    squeeze: Tensor
    squeeze_bias: Tensor
    excite: Tensor
    excite_bias: Tensor
    norm: Tensor
    temperatures: Tensor


class WideWork(NamedTuple):
    """What the launches write, `[users, candidates, blocks, columns]`; the result is `wide`
    `[users, candidates, blocks * dim]`."""

    wide: Tensor
    qkv: Tensor
    middle: Tensor
    hidden: Tensor
    change: Tensor
    squeezed: Tensor


class WideFusion:
    """The fusion of one model of any size; `pointer` is Triton's type of a pointer to its precision."""

    def __init__(self, sizes: FusionSizes, pointer: str) -> None:
        self.sizes = sizes
        blocks, dim, width = sizes.blocks, sizes.dim, sizes.width
        self._qkv = _product("fusion_qkv", sizes, pointer, (dim, 3 * dim), blocks, "none")
        self._attend = _attend(sizes, pointer)
        self._ffn_in = _product("fusion_ffn_in", sizes, pointer, (dim, sizes.ffn), blocks, "relu")
        self._ffn_out = _product("fusion_ffn_out", sizes, pointer, (sizes.ffn, dim), blocks, "none")
        self._norm = _norm(sizes, pointer)
        self._squeeze = _product("fusion_squeeze", sizes, pointer, (width, sizes.squeezed), 1, "relu")
        self._excite = _product("fusion_excite", sizes, pointer, (sizes.squeezed, width), 1, "gate")

    @property
    def kernels(self) -> tuple[TritonKernel, ...]:
        first = (self._qkv, self._attend, self._ffn_in, self._ffn_out)
        return (*first, self._norm, self._squeeze, self._excite)

    def pack(self, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> WideWeights:
        """From the tensors of a gated fusion by its own names (`layer.qkv.weight`, `squeeze.bias`, ...)."""
        own = {name.removeprefix("layer."): tensor.detach().float() for name, tensor in weights.items()}
        own = {name: own[name][0] if name in _STACKED else own[name] for name in own}
        pairs: list[Tensor] = []
        for name in ("qkv", "ffn_in", "ffn_out", "squeeze", "excite"):
            pairs += [own[f"{name}.weight"].t().to(device, dtype).contiguous(), own[f"{name}.bias"].to(device)]
        norm_vectors = torch.cat([own["norm.weight"], own["norm.bias"]]).to(device)
        return WideWeights._make([*pairs, norm_vectors, own["log_temperature"].exp().to(device)])

    def work(self, users: int, candidates: int, dtype: torch.dtype, device: torch.device) -> WideWork:
        """Memory for launches of up to `candidates` rows per user."""
        sizes = self.sizes

        def rows(blocks: int, columns: int) -> Tensor:
            return torch.empty(users, candidates, blocks, columns, dtype=dtype, device=device)

        return WideWork(
            rows(1, sizes.width)[:, :, 0],
            rows(sizes.blocks, 3 * sizes.dim),
            rows(sizes.blocks, sizes.dim),
            rows(sizes.blocks, sizes.ffn),
            rows(sizes.blocks, sizes.dim),
            rows(1, sizes.squeezed),
        )

    def launch(
        self, runtime: Runtime, weights: WideWeights, work: WideWork, words: Tensor, x: Tensor, first_row: int
    ) -> Tensor:
        """As `flame.engine.kernels.fusion.Fusion.launch`."""
        users, room, _ = work.wide.shape
        user_stride, block_stride, row_stride, _ = x.stride()
        place = (first_row, user_stride, block_stride, row_stride, room)
        by_block = x[:, :, first_row:].transpose(1, 2)
        _multiply(runtime, self._qkv, words, by_block, (weights.qkv, weights.qkv_bias), work.qkv)
        runtime.launch(
            self._attend,
            (-(-room // _ATTEND_ROWS), self.sizes.heads, users),
            *(words, work.qkv, x, weights.temperatures, work.middle, *place),
        )
        _multiply(runtime, self._ffn_in, words, work.middle, (weights.ffn_in, weights.ffn_in_bias), work.hidden)
        _multiply(runtime, self._ffn_out, words, work.hidden, (weights.ffn_out, weights.ffn_out_bias), work.change)
        runtime.launch(
            self._norm,
            (-(-room // _NORM_ROWS), self.sizes.blocks, users),
            *(words, work.change, work.middle, x, weights.norm, work.wide, *place),
        )
        wide = work.wide[:, :, None]
        _multiply(runtime, self._squeeze, words, wide, (weights.squeeze, weights.squeeze_bias), work.squeezed)
        _multiply(runtime, self._excite, words, work.squeezed, (weights.excite, weights.excite_bias), wide)
        return work.wide


AnyFusion = Fusion | WideFusion


def fusion_of(sizes: FusionSizes, pointer: str) -> AnyFusion:
    """The fusion that suits these sizes; fp32 has no matrix units, and one kernel's tiles would be too large for it."""
    if sizes.small and pointer != "*fp32":
        return Fusion(sizes, pointer)
    return WideFusion(sizes, pointer)


_STACKED = tuple(f"{name}.{kind}" for name in ("qkv", "ffn_in", "ffn_out", "norm") for kind in ("weight", "bias"))
_STACKED += ("log_temperature",)


def _multiply(
    runtime: Runtime, kernel: TritonKernel, words: Tensor, rows: Tensor, weights: tuple[Tensor, Tensor], out: Tensor
) -> None:
    """One product; `rows` and `out` `[users, candidates, blocks, columns]`, and `out` says how many candidates."""
    users, candidates, blocks, columns = out.shape
    tile = kernel.constants
    grid = (-(-columns // tile["COLUMNS"]), -(-candidates // tile["ROWS"]) * blocks, users)
    strides = [tensor.stride(axis) for tensor in (rows, out) for axis in (0, 2, 1)]
    runtime.launch(kernel, grid, words, rows, *weights, out, 0, *strides)


def _product(
    name: str, sizes: FusionSizes, pointer: str, shape: tuple[int, int], blocks: int, activation: str
) -> TritonKernel:
    pointers = {"words": "*i32", "rows": pointer, "matrix": pointer, "bias": "*fp32", "out": pointer}
    integers = ("first_row", *_STRIDES, "out_user", "out_block", "out_row")
    whole = all(size % 16 == 0 for size in (*shape, sizes.dim))
    rows, columns, step = _TILE_FP32 if pointer == "*fp32" else _TILE
    return TritonKernel(
        name=name,
        function=product,
        signature=pointers | dict.fromkeys(integers, "i32"),
        constants={
            "INPUTS": shape[0],
            "OUTPUTS": shape[1],
            "BLOCKS": blocks,
            "ACTIVATION": activation,
            "HEADER_WORDS": sizes.header_words,
            "COUNT_WORD": sizes.count_word,
            "ROWS": rows,
            "COLUMNS": columns,
            "STEP": step,
        },
        warps=4,
        stages=3,
        unaligned=frozenset() if whole else frozenset(("rows",)),
        multiples_of_16=frozenset(integers[1:]) if whole else frozenset(),
    )


def _attend(sizes: FusionSizes, pointer: str) -> TritonKernel:
    pointers = {"words": "*i32", "qkv": pointer, "x": pointer, "temperatures": "*fp32", "out": pointer}
    return TritonKernel(
        name="fusion_attend",
        function=attend,
        signature=pointers | dict.fromkeys(("first_row", *_STRIDES, "room"), "i32"),
        constants={
            "BLOCKS": sizes.blocks,
            "DIM": sizes.dim,
            "HEAD": sizes.head,
            "HEAD_PADDED": power_of_two(sizes.head),
            "RESIDUAL_FIRST": sizes.residual_first,
            "HEADER_WORDS": sizes.header_words,
            "SCENARIO_WORD": sizes.scenario_word,
            "COUNT_WORD": sizes.count_word,
            "ROWS": _ATTEND_ROWS,
        },
    )


def _norm(sizes: FusionSizes, pointer: str) -> TritonKernel:
    pointers = {"words": "*i32", "change": pointer, "middle": pointer, "x": pointer, "vectors": "*fp32", "out": pointer}
    return TritonKernel(
        name="fusion_norm",
        function=norm,
        signature=pointers | dict.fromkeys(("first_row", *_STRIDES, "room"), "i32"),
        constants={
            "BLOCKS": sizes.blocks,
            "DIM": sizes.dim,
            "DIM_PADDED": power_of_two(sizes.dim),
            "RESIDUAL_FIRST": sizes.residual_first,
            "HEADER_WORDS": sizes.header_words,
            "COUNT_WORD": sizes.count_word,
            "ROWS": _NORM_ROWS,
        },
    )
