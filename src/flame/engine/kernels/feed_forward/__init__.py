"""The feed-forward half of a Climber layer in one kernel, and with it the next layer's projection.

For a live row of block b, with `inputs` and `x` `[users, blocks, events + candidates, dim]`:

    branch = relu(inputs W_in + b_in) W_out + b_out
    x      = inputs + norm(branch)                       wiring "flame", where `inputs` is `x`
    x      = norm(x + branch)                            wiring "climber" (`norm_last`)
    queries, keys, values = x W + b                      of the next layer, with `project`

Keys and values of events go into the states, those of candidates into `own` `[users, blocks, candidates, 2 * dim]`
(`flame.engine.kernels.attention` has the state's layout). The hidden units are never in memory, and a row is taken in
pieces of a power of two: a dim of 96 is 64 and 32. For dims that fit no register file, `flame.engine.kernels.linear`
and `norm` do the same one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from flame.engine.kernels.attention import STATE_BODY
from flame.engine.kernels.feed_forward.weights import (
    FeedForwardWeights,
    Pieces,
    ProjectionWeights,
    filled,
    pack_projection,
)
from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.rows import Header

__all__ = ["EPSILON", "FeedForward", "FeedForwardWeights", "Pieces", "ProjectionMemory", "ProjectionWeights"]

EPSILON = 1e-5


class ProjectionMemory(NamedTuple):
    """Where projections go: queries `[users, blocks, rows, dim]`, own `[users, blocks, candidates, 2 * dim]`.

    states int64 `[users]`, words int32.
    """

    queries: torch.Tensor
    own: torch.Tensor
    states: torch.Tensor
    words: torch.Tensor


@dataclass(frozen=True)
class FeedForward:
    """Both kernels of one model; `precision` in Triton's words.

    `rows` rows and `chunk` hidden units are taken at a time, fixed for a model.
    """

    header: Header
    precision: str
    layers: int
    blocks: int
    heads: int
    dim: int
    ffn: int
    norm_last: bool
    rows: int = 64
    chunk: int = 64
    warps: int = 4
    stages: int = 2
    registers: int | None = None

    @cached_property
    def pieces(self) -> Pieces:
        return Pieces.of(self.dim)

    @property
    def padded_ffn(self) -> int:
        """Hidden units in whole chunks."""
        return -(-self.ffn // self.chunk) * self.chunk

    @cached_property
    def projection(self) -> TritonKernel:
        """`x` to queries, keys and values: what the first layer starts with."""
        from flame.engine.kernels.feed_forward.triton import projection_kernel

        tensor = f"*{self.precision}"
        return TritonKernel(
            name="projection",
            function=projection_kernel,
            signature={"x": tensor, "weights": tensor, "bias": "*fp32", **self._places},
            constants=self._constants,
            warps=self.warps,
            stages=self.stages,
            registers=self.registers,
            multiples_of_16=frozenset({"events", "candidates"}),
        )

    @cached_property
    def kernel(self) -> TritonKernel:
        """The feed-forward half with the next layer's projection."""
        return self._feed_forward("feed_forward", project=True)

    @cached_property
    def last_kernel(self) -> TritonKernel:
        """The feed-forward half alone."""
        return self._feed_forward("feed_forward_last", project=False)

    def kernels(self) -> tuple[TritonKernel, ...]:
        """All of them."""
        return (self.projection, self.kernel, self.last_kernel)

    def pack_projection(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> ProjectionWeights:
        """From `weight` `[blocks, 3 * dim, dim]` and `bias` `[blocks, 3 * dim]`, on their device."""
        return pack_projection(weight, bias, self.pieces.padded, dtype)

    def pack(
        self,
        ffn_in: tuple[torch.Tensor, torch.Tensor],
        ffn_out: tuple[torch.Tensor, torch.Tensor],
        norm: tuple[torch.Tensor, torch.Tensor],
        dtype: torch.dtype,
    ) -> FeedForwardWeights:
        """From weight and bias of both linear layers `[blocks, outputs, inputs]` and of the norm, on their device."""
        width, hidden = self.pieces.padded, self.padded_ffn
        return FeedForwardWeights(
            filled(ffn_in[0].transpose(1, 2), (width, hidden), dtype),
            filled(ffn_in[1], (hidden,)),
            filled(ffn_out[0].transpose(1, 2), (hidden, width), dtype),
            filled(ffn_out[1], (width,)),
            filled(norm[0], (width,)),
            filled(norm[1], (width,)),
        )

    def project(
        self,
        runtime: Runtime,
        x: torch.Tensor,
        weights: ProjectionWeights,
        memory: ProjectionMemory,
        layer: int,
        *,
        events: int,
        rows: range,
    ) -> None:
        """Projects the live rows of `rows` for `layer`; the last layer has no queries of events.

        `events` is where the candidates' rows start; bounds of `rows` are multiples of the tile.
        """
        self._launch(runtime, self.projection, (x, *weights), memory, layer, events, rows)

    def launch(
        self,
        runtime: Runtime,
        inputs: torch.Tensor,
        x: torch.Tensor,
        weights: FeedForwardWeights,
        following: ProjectionWeights | None,
        memory: ProjectionMemory,
        layer: int,
        *,
        events: int,
        rows: range,
    ) -> None:
        """The half of layer `layer`, in place in `x`, and the projection of the next where `following` is given."""
        kernel = self.kernel if following else self.last_kernel
        none = ProjectionWeights(weights.weights_in, weights.bias_in)
        tensors = (inputs, x, *weights, *(following or none))
        self._launch(runtime, kernel, tensors, memory, layer + 1, events, rows)

    def _launch(
        self,
        runtime: Runtime,
        kernel: TritonKernel,
        tensors: tuple[torch.Tensor, ...],
        memory: ProjectionMemory,
        layer: int,
        events: int,
        rows: range,
    ) -> None:
        """`layer` is the one that is projected for."""
        users, blocks, per_block, _ = memory.queries.shape
        first, tiles = rows.start // self.rows, len(rows) // self.rows
        first_part = int(layer == self.layers - 1)
        if tiles:
            numbers = (events, per_block - events, first, layer, first_part)
            runtime.launch(kernel, (tiles, users * blocks), *tensors, *memory, *numbers)

    @property
    def _places(self) -> dict[str, str]:
        tensor = f"*{self.precision}"
        numbers = dict.fromkeys(("events", "candidates", "first_tile", "layer", "first_part"), "i32")
        return {"queries": tensor, "own": tensor, "states": "*i64", "words": "*i32", **numbers}

    @property
    def _constants(self) -> dict[str, object]:
        return {
            "HEADER": self.header.words,
            "COUNT": self.header.candidates,
            "PREFIX": self.header.prefix,
            "BODY": STATE_BODY,
            "LAYERS": self.layers,
            "BLOCKS": self.blocks,
            "HEAD_DIM": self.dim // self.heads,
            "DIM": self.dim,
            "SIZES": self.pieces.sizes,
            "STARTS": self.pieces.starts,
            "ROWS": self.rows,
        }

    def _feed_forward(self, name: str, *, project: bool) -> TritonKernel:
        from flame.engine.kernels.feed_forward.triton import feed_forward_kernel

        tensor = f"*{self.precision}"
        vectors = {"weights_in": tensor, "bias_in": "*fp32", "weights_out": tensor, "bias_out": "*fp32"}
        norm = {"gain": "*fp32", "shift": "*fp32", "weights": tensor, "bias": "*fp32"}
        return TritonKernel(
            name=name,
            function=feed_forward_kernel,
            signature={"inputs": tensor, "x": tensor, **vectors, **norm, **self._places},
            constants={
                **self._constants,
                "FFN": self.padded_ffn,
                "EPSILON": EPSILON,
                "NORM_LAST": self.norm_last,
                "PROJECT": project,
                "CHUNK": self.chunk,
            },
            warps=self.warps,
            stages=self.stages,
            registers=self.registers,
            multiples_of_16=frozenset({"events", "candidates"}),
        )
