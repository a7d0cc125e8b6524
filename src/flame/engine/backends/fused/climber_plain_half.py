"""What follows attention in a layer of Climber, with the next layer's projection, as kernels of their own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flame.engine.backends.fused.climber_half import LayerTensors, LayerWork
from flame.engine.backends.fused.climber_sizes import LayerSizes
from flame.engine.kernels.feed_forward import EPSILON
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.kernels.linear import Linear, LinearMemory, LinearWeights, Part, StatePart, linear_tile
from flame.engine.kernels.norm import Norm
from flame.engine.kernels.rows import Selection


class PlainHalf:
    """Projection, two products and a norm as kernels of their own: for large dims, and to see what fusion is worth."""

    def __init__(
        self, sizes: LayerSizes, runtime: Runtime, weights: Mapping[str, Tensor] | None, capability: int
    ) -> None:
        self.hidden = sizes.ffn
        self._runtime = runtime
        self._sizes = sizes
        self._qkv = _linear(sizes, capability, "qkv", _projected(sizes), own_row=2 * sizes.dim)
        self._ffn_in = _linear(sizes, capability, "ffn_in", (Part(sizes.ffn, activation="relu"),))
        self._ffn_out = _linear(sizes, capability, "ffn_out", (Part(sizes.dim),), residual=sizes.norm_last)
        self._norm = Norm(
            "norm",
            sizes.header,
            sizes.precision.triton,
            sizes.blocks,
            sizes.dim,
            sizes.dim,
            sizes.dim,
            EPSILON,
            residual=not sizes.norm_last,
        )
        self._weights: list[tuple[LinearWeights, LinearWeights, LinearWeights, tuple[Tensor, Tensor]]] = []
        if weights:
            self._pack(weights)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return (self._qkv.kernel, self._ffn_in.kernel, self._ffn_out.kernel, self._norm.kernel)

    def project(self, work: LayerWork, states: Tensor, layer: int, select: Selection) -> None:
        self._qkv.launch(
            self._runtime,
            work.rows,
            self._weights[layer][0],
            LinearMemory(work.words, states, work.x, work.queries, own=work.own),
            select=select,
            layer=layer,
            first_event_part=int(layer + 1 == self._sizes.layers),
        )

    def launch(self, work: LayerWork, states: Tensor, layer: int, select: Selection) -> None:
        _, ffn_in, ffn_out, norm = self._weights[layer]
        runtime, rows, words = self._runtime, work.rows, work.words
        self._ffn_in.launch(
            runtime, rows, ffn_in, LinearMemory(words, states, work.attended, work.hidden), select=select
        )
        residual = work.x if self._sizes.norm_last else None
        memory = LinearMemory(words, states, work.hidden, work.branch, residual=residual)
        self._ffn_out.launch(runtime, rows, ffn_out, memory, select=select)
        behind = None if self._sizes.norm_last else work.x
        self._norm.launch(runtime, rows, words, work.branch, norm, work.x, residual=behind, select=select)
        if layer + 1 < self._sizes.layers:
            self.project(work, states, layer + 1, select)

    def _pack(self, weights: Mapping[str, Tensor]) -> None:
        for layer in range(self._sizes.layers):
            given = LayerTensors.of(weights, layer, self._runtime.device)
            gain, shift = given.norm
            self._weights.append(
                (
                    self._qkv.pack(*given.qkv),
                    self._ffn_in.pack(*given.ffn_in),
                    self._ffn_out.pack(*given.ffn_out),
                    (gain.contiguous(), shift.contiguous()),
                )
            )


def _projected(sizes: LayerSizes) -> tuple[Part, ...]:
    """Queries for all, keys and values of events into the states."""
    step, half = sizes.blocks * sizes.dim, sizes.layers * sizes.blocks * sizes.dim
    keys, values = (StatePart(start, step, sizes.heads, sizes.head_dim) for start in (0, half))
    return (Part(sizes.dim), Part(sizes.dim, 0, state=keys), Part(sizes.dim, sizes.dim, state=values))


def _linear(
    sizes: LayerSizes, capability: int, name: str, parts: tuple[Part, ...], *, own_row: int = 0, residual: bool = False
) -> Linear:
    inputs = sizes.ffn if name == "ffn_out" else sizes.dim
    tile = linear_tile([part.width for part in parts], inputs, sizes.precision.triton, capability)
    return Linear(
        name,
        sizes.header,
        sizes.precision.triton,
        sizes.blocks,
        inputs,
        parts,
        x_row=inputs,
        y_row=parts[0].width,
        tile=tile,
        own_row=own_row,
        residual=residual,
    )
