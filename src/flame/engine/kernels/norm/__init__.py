"""LayerNorm of live rows, alone, with a residual behind it, or as statistics for a product that folds it in.

Sums are fp32, over the whole row in one order: a row's bits depend on that row alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.rows import Header, RowsShape, Selection, Tiles

if TYPE_CHECKING:
    import torch

__all__ = ["Norm", "RowStatistics", "row_tile"]

_INTEGERS = ("events", "candidates", "event_tiles", "candidate_tiles")
_ELEMENTS = 4096


@dataclass(frozen=True)
class Norm:
    """y = norm(x) * gain + shift, `+ residual` where there is one; `precision` in Triton's words.

    `x` and `y` are read and written from columns `x_at` and `y_at` on; `residual` has the rows and columns of `y`,
    and may be `y`.
    """

    name: str
    header: Header
    precision: str
    blocks: int
    dim: int
    x_row: int
    y_row: int
    eps: float
    x_at: int = 0
    y_at: int = 0
    residual: bool = False

    @cached_property
    def kernel(self) -> TritonKernel:
        """The kernel, for whoever compiles and loads it."""
        from flame.engine.kernels.norm.triton import layer_norm

        data = f"*{self.precision}"
        pointers = {"words": "*i32", "x": data, "gain": "*fp32", "shift": "*fp32", "residual": data, "y": data}
        constants = {
            **self.header.constants(),
            "BLOCKS": self.blocks,
            "DIM": self.dim,
            "X_ROW": self.x_row,
            "X_AT": self.x_at,
            "Y_ROW": self.y_row,
            "Y_AT": self.y_at,
            "EPS": self.eps,
            "RESIDUAL": self.residual,
            **_tile(self.dim),
        }
        return TritonKernel(self.name, layer_norm, pointers | dict.fromkeys(_INTEGERS, "i32"), constants)

    def launch(
        self,
        runtime: Runtime,
        rows: RowsShape,
        words: torch.Tensor,
        x: torch.Tensor,
        norm: tuple[torch.Tensor, torch.Tensor],
        y: torch.Tensor,
        *,
        residual: torch.Tensor | None = None,
        select: Selection = "all",
    ) -> None:
        """Enqueues it; `norm` is gain and shift, fp32 `[blocks, dim]` each."""
        tiles = Tiles.of(rows, select, row_tile(self.dim))
        if programs := tiles.programs(rows):
            integers = (rows.events, rows.candidates, *tiles)
            behind = y if residual is None else residual
            runtime.launch(self.kernel, (programs,), words, x, *norm, behind, y, *integers)


@dataclass(frozen=True)
class RowStatistics:
    """Mean and 1 / sqrt(variance + eps) of rows: fp32 `[users, blocks, rows, 2]`."""

    name: str
    header: Header
    precision: str
    blocks: int
    dim: int
    x_row: int
    eps: float
    x_at: int = 0

    @cached_property
    def kernel(self) -> TritonKernel:
        """The kernel, for whoever compiles and loads it."""
        from flame.engine.kernels.norm.triton import row_statistics

        pointers = {"words": "*i32", "x": f"*{self.precision}", "statistics": "*fp32"}
        constants = {
            **self.header.constants(),
            "BLOCKS": self.blocks,
            "DIM": self.dim,
            "X_ROW": self.x_row,
            "X_AT": self.x_at,
            "EPS": self.eps,
            **_tile(self.dim),
        }
        return TritonKernel(self.name, row_statistics, pointers | dict.fromkeys(_INTEGERS, "i32"), constants)

    def launch(
        self,
        runtime: Runtime,
        rows: RowsShape,
        words: torch.Tensor,
        x: torch.Tensor,
        statistics: torch.Tensor,
        *,
        select: Selection = "all",
    ) -> None:
        """Enqueues it over the selected rows."""
        tiles = Tiles.of(rows, select, row_tile(self.dim))
        if programs := tiles.programs(rows):
            integers = (rows.events, rows.candidates, *tiles)
            runtime.launch(self.kernel, (programs,), words, x, statistics, *integers)


def row_tile(dim: int) -> int:
    """Rows that one program takes of rows of `dim` elements."""
    return max(1, min(32, _ELEMENTS // _columns(dim)))


def _tile(dim: int) -> dict[str, int]:
    return {"BM": row_tile(dim), "COLUMNS": _columns(dim)}


def _columns(dim: int) -> int:
    return max(16, 1 << (dim - 1).bit_length())
