"""HSTU's pointwise attention of event rows and candidate rows against the history's keys and values in its state.

    o = sum over the keys a row sees of silu(alpha q k^T) * scale * v

An event sees the history (up to itself where it is causal), a candidate the history and its own key, which stands in
`own`. Queries come multiplied by alpha / 2 (fold it into their weights): silu(2 h) = h tanh(h) + h. Compiled for bf16
and fp16, tanh is the hardware's approximation (relative error 2^-11); elsewhere it is exact. fp32 products are three
of tf32 each, which is as exact as fp32 sums are and needs no more registers than there are. The history is taken in
chunks of a fixed number of keys from slot 0: a row's bits depend on its own inputs and the history alone.

    rows   [users, 1, events + candidates, row]    queries from column q_at, o from o_at on, heads side by side; where
                                                   both heads have the same size they may be the same columns
    own    [users, 1, candidates, own_row]         keys from column k_at, values from v_at on
    state  capacity and length, then keys [layers, heads, capacity, attention dim],
           values [layers, heads, capacity, linear dim]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.pointwise_attention.tiles import AttentionTile, attention_tile
from flame.engine.kernels.rows import Header, RowsShape, Selection, Tiles

if TYPE_CHECKING:
    import torch

__all__ = ["AttentionColumns", "AttentionTile", "PointwiseAttention", "attention_tile"]

STATE_HEADER_BYTES = 256


class AttentionColumns(NamedTuple):
    """Where q, o and a candidate's k and v stand; `row` and `own_row` are elements per row of the two buffers."""

    row: int
    q_at: int
    o_at: int
    own_row: int
    k_at: int
    v_at: int


@dataclass(frozen=True)
class PointwiseAttention:
    """The attention of a model; `precision` in Triton's words, `scale` a constant of the model."""

    header: Header
    precision: str
    layers: int
    heads: int
    attention_dim: int
    linear_dim: int
    causal: bool
    scale: float
    columns: AttentionColumns
    tile: AttentionTile

    @cached_property
    def kernel(self) -> TritonKernel:
        """The kernel, for whoever compiles and loads it."""
        from flame.engine.kernels.pointwise_attention.triton import pointwise_attention

        data = f"*{self.precision}"
        pointers = {"words": "*i32", "states": "*i64", "rows": data, "own": data}
        integers = ("events", "candidates", "event_tiles", "candidate_tiles", "layer")
        return TritonKernel(
            name="pointwise_attention",
            function=pointwise_attention,
            signature={**pointers, **dict.fromkeys(integers, "i32"), "scale": "fp32"},
            constants=self._constants(),
            warps=self.tile.warps,
            stages=self.tile.stages,
            registers=self.tile.registers,
        )

    def launch(
        self,
        runtime: Runtime,
        shape: RowsShape,
        words: torch.Tensor,
        states: torch.Tensor,
        rows: torch.Tensor,
        own: torch.Tensor,
        *,
        layer: int,
        select: Selection = "all",
    ) -> None:
        """Enqueues layer `layer` over the selected rows; the states hold that layer's keys and values by then."""
        tiles = Tiles.of(shape, select, self.tile.rows)
        if programs := tiles.programs(shape) * self.heads:
            integers = (shape.events, shape.candidates, *tiles, layer)
            runtime.launch(self.kernel, (programs,), words, states, rows, own, *integers, self.scale)

    def _constants(self) -> dict[str, object]:
        return {
            **self.header.constants(),
            "HEADS": self.heads,
            "DA": self.attention_dim,
            "DL": self.linear_dim,
            "ROW": self.columns.row,
            "Q_AT": self.columns.q_at,
            "O_AT": self.columns.o_at,
            "OWN_ROW": self.columns.own_row,
            "K_AT": self.columns.k_at,
            "V_AT": self.columns.v_at,
            "VALUES": self.layers * self.heads * self.attention_dim,
            "BODY": STATE_HEADER_BYTES,
            "CAUSAL": self.causal,
            "EXACT": self.precision == "fp32" or _interpreting(),
            "DOT": "tf32x3" if self.precision == "fp32" else "tf32",
            "BM": self.tile.rows,
            "BN": self.tile.keys,
            "BA": _power(self.attention_dim),
            "BL": _power(self.linear_dim),
        }


def _interpreting() -> bool:
    """Whether this process interprets kernels: PTX cannot be."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def _power(dim: int) -> int:
    return max(16, 1 << (dim - 1).bit_length())
