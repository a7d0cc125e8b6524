"""What follows attention in a layer of Climber, with the next layer's projection, fused into one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flame.engine.backends.fused.climber_sizes import LayerSizes
from flame.engine.backends.fused.rows import Rows
from flame.engine.kernels.feed_forward import FeedForward, FeedForwardWeights, ProjectionMemory, ProjectionWeights
from flame.engine.kernels.feed_forward.tiles import feed_forward_tile
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.kernels.rows import Selection


class LayerWork(NamedTuple):
    """Workspace of the layers; rows as those of `x`.

    queries, attended and branch `[users, blocks, rows, dim]`, own `[users, blocks, candidates, 2 * dim]`, hidden
    `[users, blocks, rows, ffn]`. `attended` is `x` where attention adds it; `hidden` and `branch` are empty where
    nothing is kept between products.
    """

    rows: Rows
    words: Tensor
    x: Tensor
    queries: Tensor
    own: Tensor
    attended: Tensor
    hidden: Tensor
    branch: Tensor


class Half(Protocol):
    """The part of the layers that is not attention."""

    hidden: int

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """All kernels that it launches."""

    def project(self, work: LayerWork, states: Tensor, layer: int, select: Selection) -> None:
        """Queries, keys and values of `layer` from `x`."""

    def launch(self, work: LayerWork, states: Tensor, layer: int, select: Selection) -> None:
        """The rest of `layer` after attention, and the projection of the next where there is one."""


class FusedHalf:
    """One kernel a layer; hidden units are never in memory."""

    hidden = 0

    def __init__(
        self, sizes: LayerSizes, runtime: Runtime, weights: Mapping[str, Tensor] | None, capability: int
    ) -> None:
        tile = feed_forward_tile(sizes.dim, sizes.precision.triton, capability)
        self._runtime = runtime
        self._sizes = sizes
        self._op = FeedForward(
            sizes.header,
            sizes.precision.triton,
            sizes.layers,
            sizes.blocks,
            sizes.heads,
            sizes.dim,
            sizes.ffn,
            sizes.norm_last,
            *tile,
        )
        self._projections: list[ProjectionWeights] = []
        self._halves: list[FeedForwardWeights] = []
        if weights:
            self._pack(weights)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return self._op.kernels()

    def project(self, work: LayerWork, states: Tensor, layer: int, select: Selection) -> None:
        self._op.project(
            self._runtime,
            work.x,
            self._projections[layer],
            ProjectionMemory(work.queries, work.own, states, work.words),
            layer,
            events=work.rows.events,
            rows=selected(work.rows, select),
        )

    def launch(self, work: LayerWork, states: Tensor, layer: int, select: Selection) -> None:
        last = layer + 1 == self._sizes.layers
        self._op.launch(
            self._runtime,
            work.attended,
            work.x,
            self._halves[layer],
            None if last else self._projections[layer + 1],
            ProjectionMemory(work.queries, work.own, states, work.words),
            layer,
            events=work.rows.events,
            rows=selected(work.rows, select),
        )

    def _pack(self, weights: Mapping[str, Tensor]) -> None:
        dtype, device = self._sizes.precision.dtype, self._runtime.device
        for layer in range(self._sizes.layers):
            given = LayerTensors.of(weights, layer, device)
            self._projections.append(self._op.pack_projection(*given.qkv, dtype))
            self._halves.append(self._op.pack(given.ffn_in, given.ffn_out, given.norm, dtype))


class LayerTensors(NamedTuple):
    """A layer's weights, fp32 on the device: weight and bias each, stacked by block."""

    qkv: tuple[Tensor, Tensor]
    ffn_in: tuple[Tensor, Tensor]
    ffn_out: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], layer: int, device: torch.device) -> LayerTensors:
        """Those of `layer`, by the model's names."""

        def pair(name: str) -> tuple[Tensor, Tensor]:
            weight, bias = (weights[f"layers.{layer}.{name}.{kind}"] for kind in ("weight", "bias"))
            return weight.to(device, torch.float32), bias.to(device, torch.float32)

        return cls(pair("qkv"), pair("ffn_in"), pair("ffn_out"), pair("norm"))


def selected(rows: Rows, select: Selection) -> range:
    """The rows of a block that are selected."""
    first = rows.events if select == "candidates" else 0
    return range(first, rows.events if select == "events" else rows.per_block)
