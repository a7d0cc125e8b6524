"""Climber's layers as kernels of their own: a projection, then attention and the feed-forward half layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flame.engine.backends.fused.climber_half import FusedHalf, Half, LayerWork, selected
from flame.engine.backends.fused.climber_plain_half import PlainHalf
from flame.engine.backends.fused.climber_sizes import LayerSizes
from flame.engine.backends.fused.rows import Rows
from flame.engine.kernels.attention import Attention, BiasTables, Memory
from flame.engine.kernels.attention.tiles import attention_tile
from flame.engine.kernels.feed_forward.tiles import largest_dim
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.kernels.rows import Selection


class Layers:
    """All layers of all blocks; every launch runs all blocks."""

    def __init__(
        self,
        sizes: LayerSizes,
        runtime: Runtime,
        weights: Mapping[str, Tensor] | None,
        capability: int,
        *,
        fused: bool,
    ) -> None:
        """`fused` allows the feed-forward half to be one kernel; it is one where the dim fits."""
        self._sizes = sizes
        self._runtime = runtime
        self._attention = _attention(sizes, capability)
        half = FusedHalf if fused and sizes.dim <= largest_dim(sizes.precision.triton) else PlainHalf
        self._half: Half = half(sizes, runtime, weights, capability)
        self._scales: list[Tensor] = []
        self._tables: BiasTables | None = None
        if weights:
            self._pack(weights)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return (self._attention.kernel, *self._half.kernels)

    @property
    def ages(self) -> int | None:
        """Bytes of a state's body before the ages, for each event of its capacity; None where it has none."""
        return self._attention.history_bytes if self._sizes.bias else None

    def state_bytes(self, capacity: int) -> int:
        """Bytes of a state's body."""
        return self._attention.state_bytes(capacity)

    def work(self, rows: Rows, words: Tensor, x: Tensor) -> LayerWork:
        """Memory for launches with these rows over `words` and `x`."""
        sizes = self._sizes
        shape = (rows.users, rows.blocks)
        unfused = rows.per_block if self._half.hidden else 0
        return LayerWork(
            rows=rows,
            words=words,
            x=x,
            queries=torch.empty_like(x),
            own=x.new_empty(*shape, rows.candidates, 2 * sizes.dim),
            attended=torch.empty_like(x) if sizes.norm_last else x,
            hidden=x.new_empty(*shape, unfused, sizes.ffn),
            branch=x.new_empty(*shape, unfused, sizes.dim),
        )

    def run(self, work: LayerWork, states: Tensor, select: Selection) -> None:
        """From tokens in `x` to the last layer's candidates in `x`, events' keys and values into the states.

        Events are done with once their keys and values of the last layer are known.
        """
        self._half.project(work, states, 0, select)
        for layer in range(self._sizes.layers):
            last = layer + 1 == self._sizes.layers
            if last and select == "events":
                return
            only: Selection = "candidates" if last else select
            self._attend(work, states, layer, only)
            self._half.launch(work, states, layer, only)

    def _attend(self, work: LayerWork, states: Tensor, layer: int, select: Selection) -> None:
        memory = Memory(work.queries, work.own, work.x, work.attended, states, work.words, self._scales[layer])
        rows = selected(work.rows, select)
        self._attention.launch(self._runtime, memory, self._tables, layer, events=work.rows.events, rows=rows)

    def _pack(self, weights: Mapping[str, Tensor]) -> None:
        device = self._runtime.device
        for layer in range(self._sizes.layers):
            temperature = weights[f"layers.{layer}.log_temperature"].double()
            scale = torch.exp(-temperature) * math.log2(math.e)
            self._scales.append(scale.float().to(device).contiguous())
        if self._sizes.bias:
            names = (f"relative_bias.{name}" for name in ("positions", "times", "scenario_scale"))
            self._tables = BiasTables(*(weights[name].to(device, torch.float32).contiguous() for name in names))


def _attention(sizes: LayerSizes, capability: int) -> Attention:
    rows, keys, warps, stages = attention_tile(sizes.head_dim, sizes.precision.triton, capability)
    return Attention(
        header=sizes.header,
        precision=sizes.precision.triton,
        layers=sizes.layers,
        blocks=sizes.blocks,
        heads=sizes.heads,
        head_dim=sizes.head_dim,
        scenarios=sizes.scenarios,
        causal=sizes.causal,
        residual=not sizes.norm_last,
        bias=sizes.bias,
        rows=rows,
        keys=keys,
        warps=warps,
        stages=stages,
    )
