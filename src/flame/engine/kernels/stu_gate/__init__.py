"""HSTU's gate: y = u * norm(o), the norm over all heads together.

u, o and y are ranges of columns of one buffer of rows, so that [u, o, y] can be read as one by the product behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.norm import row_tile
from flame.engine.kernels.rows import Header, RowsShape, Selection, Tiles

if TYPE_CHECKING:
    import torch

__all__ = ["StuGate"]


@dataclass(frozen=True)
class StuGate:
    """The gate of a model; `u_at`, `o_at` and `y_at` are the first of `dim` columns each, in rows of `row`."""

    header: Header
    precision: str
    dim: int
    row: int
    u_at: int
    o_at: int
    y_at: int
    eps: float

    @cached_property
    def kernel(self) -> TritonKernel:
        """The kernel, for whoever compiles and loads it."""
        from flame.engine.kernels.stu_gate.triton import stu_gate

        pointers = {"words": "*i32", "rows": f"*{self.precision}", "gain": "*fp32", "shift": "*fp32"}
        integers = ("events", "candidates", "event_tiles", "candidate_tiles")
        constants = {
            **self.header.constants(),
            "DIM": self.dim,
            "ROW": self.row,
            "U_AT": self.u_at,
            "O_AT": self.o_at,
            "Y_AT": self.y_at,
            "EPS": self.eps,
            "BM": row_tile(self.dim),
            "COLUMNS": max(16, 1 << (self.dim - 1).bit_length()),
        }
        return TritonKernel("stu_gate", stu_gate, pointers | dict.fromkeys(integers, "i32"), constants)

    def launch(
        self,
        runtime: Runtime,
        shape: RowsShape,
        words: torch.Tensor,
        rows: torch.Tensor,
        norm: tuple[torch.Tensor, torch.Tensor],
        *,
        select: Selection = "all",
    ) -> None:
        """Enqueues it; `rows` `[users, 1, events + candidates, row]`, `norm` gain and shift, fp32 `[dim]` each."""
        tiles = Tiles.of(shape, select, row_tile(self.dim))
        if programs := tiles.programs(shape):
            runtime.launch(self.kernel, (programs,), words, rows, *norm, shape.events, shape.candidates, *tiles)
