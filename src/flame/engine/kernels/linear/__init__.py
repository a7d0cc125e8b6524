"""A linear layer over live rows: act(norm(x) W^T + b) + residual, its output columns going where they are needed.

The norm before it is folded in: with m and r the mean and 1 / standard deviation of a row (`norm.RowStatistics`), gain
g and shift s, norm(x) W^T = r (x - m) (W g)^T + W s. W g is packed, W s is added to the bias, and the mean is taken off
behind the product: m times the sums of the packed, rounded rows of W g, so that x - m is what meets the rounding.

Output columns are parts. A part goes to its columns of `y`; or, with a `StatePart`, event rows go to the users' states
and candidate rows to `own`. Tiles are fixed for a model, never for a profile: a row's bits depend on that row alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.linear.tiles import Tile, linear_tile
from flame.engine.kernels.linear.weights import LinearWeights, pack
from flame.engine.kernels.rows import Header, RowsShape, Selection, Tiles

if TYPE_CHECKING:
    import torch

__all__ = ["Linear", "LinearMemory", "LinearWeights", "Part", "StatePart", "Tile", "linear_tile", "pack"]

STATE_HEADER_BYTES = 256
"""Bytes before a state's body; its first word is the capacity."""

Activation = Literal["none", "relu", "silu"]
_ACTIVATIONS: Mapping[Activation, int] = {"none": 0, "relu": 1, "silu": 2}


class StatePart(NamedTuple):
    """Where a part lies in a state's body: head h of block b of layer l is a run of `capacity` rows of `dim` elements
    that starts at element capacity * (start + l * layer_step + (b * heads + h) * dim)."""

    start: int
    layer_step: int
    heads: int
    dim: int


class Part(NamedTuple):
    """A range of output columns: `width` columns that go to column `at` of the destination on."""

    width: int
    at: int = 0
    activation: Activation = "none"
    state: StatePart | None = None


class LinearMemory(NamedTuple):
    """What one launch works on; what it does not need may be any tensor of the type.

    words int32, headers first; states int64 `[users]`; x `[users, blocks, rows, x_row]`; y and residual
    `[users, blocks, rows, y_row]` and may be the same; own `[users, blocks, candidates, own_row]`; statistics fp32
    `[users, blocks, rows, 2]`.
    """

    words: torch.Tensor
    states: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    own: torch.Tensor | None = None
    statistics: torch.Tensor | None = None
    residual: torch.Tensor | None = None


@dataclass(frozen=True)
class Linear:
    """One linear layer of a model; `precision` in Triton's words. `x` is read from column `x_at` on."""

    name: str
    header: Header
    precision: str
    blocks: int
    inputs: int
    parts: tuple[Part, ...]
    x_row: int
    y_row: int
    tile: Tile
    x_at: int = 0
    own_row: int = 0
    normed: bool = False
    residual: bool = False

    @cached_property
    def kernel(self) -> TritonKernel:
        """The kernel, for whoever compiles and loads it."""
        from flame.engine.kernels.linear.triton import linear

        data = f"*{self.precision}"
        pointers = {"words": "*i32", "states": "*i64", "x": data, "weight": data}
        pointers |= {"bias": "*fp32", "column_sums": "*fp32", "statistics": "*fp32"}
        pointers |= {"residual": data, "y": data, "own": data}
        integers = ("events", "candidates", "event_tiles", "candidate_tiles", "event_column", "layer")
        return TritonKernel(
            name=self.name,
            function=linear,
            signature=pointers | dict.fromkeys(integers, "i32"),
            constants=self._constants(),
            warps=self.tile.warps,
            stages=self.tile.stages,
            registers=self.tile.registers,
        )

    def pack(
        self, weight: torch.Tensor, bias: torch.Tensor | None, norm: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> LinearWeights:
        """Weights as the kernel reads them; `weight` fp32 `[blocks, outputs, inputs]` in the order of the parts,
        `bias` `[blocks, outputs]`, `norm` gain and shift `[blocks, inputs]` each."""
        return pack(weight, bias, norm, [part.width for part in self.parts], self.tile.columns, self.precision)

    def launch(
        self,
        runtime: Runtime,
        rows: RowsShape,
        weights: LinearWeights,
        memory: LinearMemory,
        *,
        select: Selection = "all",
        layer: int = 0,
        first_event_part: int = 0,
    ) -> None:
        """Enqueues it over the selected rows; event rows get only the parts from `first_event_part` on.

        `layer` says where in the states parts go.
        """
        tiles = Tiles.of(rows, select, self.tile.rows)
        programs = tiles.programs(rows) * self._column_tiles[-1]
        if not programs:
            return
        runtime.launch(
            self.kernel,
            (programs,),
            memory.words,
            memory.states,
            memory.x,
            weights.weight,
            weights.bias,
            weights.column_sums,
            weights.bias if memory.statistics is None else memory.statistics,
            memory.y if memory.residual is None else memory.residual,
            memory.y,
            memory.y if memory.own is None else memory.own,
            rows.events,
            rows.candidates,
            *tiles,
            self._column_tiles[first_event_part],
            layer,
        )

    @cached_property
    def _column_tiles(self) -> Sequence[int]:
        """The column tile at which each part starts, and the number of all."""
        starts = [0]
        for part in self.parts:
            starts.append(starts[-1] - -part.width // self.tile.columns)
        return starts

    def _constants(self) -> dict[str, object]:
        starts = self._column_tiles
        parts = tuple(
            (starts[i], starts[i + 1], part.at, part.width, _ACTIVATIONS[part.activation])
            + (tuple(part.state) if part.state else (-1, 0, 1, 1))
            for i, part in enumerate(self.parts)
        )
        return {
            **self.header.constants(),
            "BLOCKS": self.blocks,
            "K": self.inputs,
            "X_ROW": self.x_row,
            "X_AT": self.x_at,
            "Y_ROW": self.y_row,
            "OWN_ROW": self.own_row,
            "PARTS": parts,
            "COLUMN_TILES": starts[-1],
            "NORMED": self.normed,
            "RESIDUAL": self.residual,
            "BODY": STATE_HEADER_BYTES,
            "DOT": "ieee" if self.precision == "fp32" else "tf32",
            "BM": self.tile.rows,
            "BN": self.tile.columns,
            "BK": self.tile.inputs,
        }
