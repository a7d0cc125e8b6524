"""The layers of an HSTU: statistics, one product for u, q, k and v, attention, gate, one product back.

norm_in is folded into the first product, alpha / 2 into q's weights, and the second product reads [u, o, y] where
they lie, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.backends.fused.hstu_sizes import EPS, HstuSizes
from flame.engine.backends.fused.precision import Precision
from flame.engine.backends.fused.rows import Rows
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.kernels.linear import Linear, LinearMemory, LinearWeights, Part, linear_tile
from flame.engine.kernels.norm import RowStatistics
from flame.engine.kernels.pointwise_attention import PointwiseAttention, attention_tile
from flame.engine.kernels.rows import Selection
from flame.engine.kernels.stu_gate import StuGate

_KEYS = 2
"""Index of k among the parts of the first product: events need no more of the last layer than k and v."""


class LayerWork(NamedTuple):
    """Memory that all layers share: activations, candidates' own keys and values, statistics; see `hstu_sizes`."""

    activations: Tensor
    own: Tensor
    statistics: Tensor


class LayerWeights(NamedTuple):
    """One layer's weights on the device; `gate` is gain and shift of norm_out."""

    first: LinearWeights
    gate: tuple[Tensor, Tensor]
    second: LinearWeights


class HstuLayers:
    """All layers of one model; with `weights` None only kernels and sizes."""

    def __init__(
        self,
        sizes: HstuSizes,
        precision: Precision,
        runtime: Runtime,
        weights: Mapping[str, Tensor] | None,
        capability: int,
    ) -> None:
        self._sizes = sizes
        self._precision = precision
        self._runtime = runtime
        dim = sizes.config.dim
        self._statistics = RowStatistics("row_statistics", sizes.header, precision.triton, 1, dim, dim, EPS)
        self._first, self._second = _products(sizes, precision, capability)
        self._attention = _attention(sizes, precision, capability)
        row, value = sizes.columns.row, sizes.value
        self._gate = StuGate(sizes.header, precision.triton, value, row, 0, sizes.columns.o_at, 2 * value, EPS)
        self._weights = [self._packed(weights, layer) for layer in range(sizes.config.layers)] if weights else []

    @property
    def kernels(self) -> Sequence[Kernel]:
        """Of all layers: each takes part in every one."""
        made = (self._statistics, self._first, self._attention, self._gate, self._second)
        return [each.kernel for each in made]

    def work(self, rows: Rows) -> LayerWork:
        """Memory for launches with these rows."""
        columns, device, dtype = self._sizes.columns, self._runtime.device, self._precision.dtype
        return LayerWork(
            torch.empty(rows.users, 1, rows.per_block, columns.row, dtype=dtype, device=device),
            torch.empty(rows.users, 1, rows.candidates, columns.own_row, dtype=dtype, device=device),
            torch.empty(rows.users, 1, rows.per_block, 2, device=device),
        )

    def run(self, rows: Rows, words: Tensor, x: Tensor, states: Tensor, work: LayerWork, select: Selection) -> None:
        """Takes the selected rows of `x` through all layers, in place; events are left after their last k and v."""
        for layer in range(len(self._weights)):
            last = layer + 1 == len(self._weights)
            self._project(rows, words, x, states, work, select, layer)
            rest: Selection = "candidates" if last else select
            if not last or select != "events":
                self._finish(rows, words, x, states, work, rest, layer)

    def _project(
        self, rows: Rows, words: Tensor, x: Tensor, states: Tensor, work: LayerWork, select: Selection, layer: int
    ) -> None:
        last = layer + 1 == len(self._weights)
        self._statistics.launch(self._runtime, rows, words, x, work.statistics, select=select)
        self._first.launch(
            self._runtime,
            rows,
            self._weights[layer].first,
            LinearMemory(words, states, x, work.activations, work.own, work.statistics),
            select=select,
            layer=layer,
            first_event_part=_KEYS if last else 0,
        )

    def _finish(
        self, rows: Rows, words: Tensor, x: Tensor, states: Tensor, work: LayerWork, select: Selection, layer: int
    ) -> None:
        runtime, weights = self._runtime, self._weights[layer]
        self._attention.launch(runtime, rows, words, states, work.activations, work.own, layer=layer, select=select)
        self._gate.launch(runtime, rows, words, work.activations, weights.gate, select=select)
        memory = LinearMemory(words, states, work.activations, x, residual=x)
        self._second.launch(runtime, rows, weights.second, memory, select=select)

    def _packed(self, weights: Mapping[str, Tensor], layer: int) -> LayerWeights:
        own = {name: weights[f"layers.{layer}.{name}"].detach().to(self._runtime.device).float() for name in _TENSORS}
        norm = own["norm_in.weight"][None], own["norm_in.bias"][None]
        weight, bias = self._reordered(own["uvqk.weight"])[None], self._reordered(own["uvqk.bias"])[None]
        gate = own["norm_out.weight"].contiguous(), own["norm_out.bias"].contiguous()
        second = self._second.pack(own["out.weight"][None], None)
        return LayerWeights(self._first.pack(weight, bias, norm), gate, second)

    def _reordered(self, rows: Tensor) -> Tensor:
        """Rows u, v, q, k as u, q, k, v; q times alpha / 2."""
        sizes = self._sizes
        u, v, q, k = torch.split(rows, [sizes.value, sizes.value, sizes.attention, sizes.attention])
        return torch.cat([u, q / (2 * math.sqrt(sizes.config.attention_dim)), k, v])


_TENSORS = (
    "norm_in.weight",
    "norm_in.bias",
    "uvqk.weight",
    "uvqk.bias",
    "norm_out.weight",
    "norm_out.bias",
    "out.weight",
)


def _products(sizes: HstuSizes, precision: Precision, capability: int) -> tuple[Linear, Linear]:
    """From x to u, q, k and v; from u, o and y back to x."""
    dim, row, wide = sizes.config.dim, sizes.columns.row, 3 * sizes.value
    first = Linear(
        name="stu_first",
        header=sizes.header,
        precision=precision.triton,
        blocks=1,
        inputs=dim,
        parts=sizes.parts,
        x_row=dim,
        y_row=row,
        tile=linear_tile([part.width for part in sizes.parts], dim, precision.triton, capability),
        own_row=sizes.columns.own_row,
        normed=True,
    )
    second = Linear(
        name="stu_second",
        header=sizes.header,
        precision=precision.triton,
        blocks=1,
        inputs=wide,
        parts=(Part(dim),),
        x_row=row,
        y_row=dim,
        tile=linear_tile([dim], wide, precision.triton, capability),
        residual=True,
    )
    return first, second


def _attention(sizes: HstuSizes, precision: Precision, capability: int) -> PointwiseAttention:
    config = sizes.config
    return PointwiseAttention(
        header=sizes.header,
        precision=precision.triton,
        layers=config.layers,
        heads=config.heads,
        attention_dim=config.attention_dim,
        linear_dim=config.linear_dim,
        causal=config.causal,
        scale=sizes.scale,
        columns=sizes.columns,
        tile=attention_tile(max(config.attention_dim, config.linear_dim), precision.triton, capability),
    )
