"""LayerNorm of live rows, and its statistics alone."""

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import wait_for_kernel_before
from flame.engine.kernels.rows.triton import live_rows


@triton.jit
def layer_norm(
    words,
    x,
    gain,
    shift,
    residual,
    y,
    events,
    candidates,
    event_tiles,
    candidate_tiles,
    HEADER: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LENGTHS: tl.constexpr,
    PREFIX: tl.constexpr,
    BLOCKS: tl.constexpr,
    DIM: tl.constexpr,
    X_ROW: tl.constexpr,
    X_AT: tl.constexpr,
    Y_ROW: tl.constexpr,
    Y_AT: tl.constexpr,
    EPS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BM: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """y = norm(x) * gain + shift (+ residual); residual and y have the same columns of rows of the same size."""
    tile = tl.program_id(0)
    pair = tile // (event_tiles + candidate_tiles)
    tile = tile % (event_tiles + candidate_tiles)
    block = pair % BLOCKS
    first, live = live_rows(
        words, tile, pair // BLOCKS, block, event_tiles, events, HEADER, CANDIDATES, LENGTHS, PREFIX, BM
    )
    wait_for_kernel_before(DEPENDENT)
    if live <= 0:
        return
    row = tl.arange(0, BM)
    column = tl.arange(0, COLUMNS)
    keep = (row < live)[:, None] & (column < DIM)[None, :]
    base = pair.to(tl.int64) * (events + candidates) + first
    values, mean, scale = normed_rows(x + base * X_ROW + X_AT, row, live, X_ROW, DIM, EPS, COLUMNS)
    g = tl.load(gain + block * DIM + column, mask=column < DIM, other=0.0)
    s = tl.load(shift + block * DIM + column, mask=column < DIM, other=0.0)
    values = (values - mean[:, None]) * scale[:, None] * g[None, :] + s[None, :]
    to = row[:, None] * Y_ROW + column[None, :]
    if RESIDUAL:
        values += tl.load(residual + base * Y_ROW + Y_AT + to, mask=keep, other=0.0).to(tl.float32)
    tl.store(y + base * Y_ROW + Y_AT + to, values.to(y.dtype.element_ty), mask=keep)


@triton.jit
def row_statistics(
    words,
    x,
    statistics,
    events,
    candidates,
    event_tiles,
    candidate_tiles,
    HEADER: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LENGTHS: tl.constexpr,
    PREFIX: tl.constexpr,
    BLOCKS: tl.constexpr,
    DIM: tl.constexpr,
    X_ROW: tl.constexpr,
    X_AT: tl.constexpr,
    EPS: tl.constexpr,
    BM: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Mean and 1 / standard deviation of every live row."""
    tile = tl.program_id(0)
    pair = tile // (event_tiles + candidate_tiles)
    tile = tile % (event_tiles + candidate_tiles)
    block = pair % BLOCKS
    first, live = live_rows(
        words, tile, pair // BLOCKS, block, event_tiles, events, HEADER, CANDIDATES, LENGTHS, PREFIX, BM
    )
    wait_for_kernel_before(DEPENDENT)
    if live <= 0:
        return
    row = tl.arange(0, BM)
    base = pair.to(tl.int64) * (events + candidates) + first
    _, mean, scale = normed_rows(x + base * X_ROW + X_AT, row, live, X_ROW, DIM, EPS, COLUMNS)
    tl.store(statistics + (base + row) * 2, mean, mask=row < live)
    tl.store(statistics + (base + row) * 2 + 1, scale, mask=row < live)


@triton.jit
def normed_rows(x, row, live, ROW: tl.constexpr, DIM: tl.constexpr, EPS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows `row` of `x` in fp32, 0 behind `DIM`, with their means and 1 / standard deviations."""
    column = tl.arange(0, COLUMNS)
    inside = (column < DIM)[None, :]
    values = tl.load(x + row[:, None] * ROW + column[None, :], mask=(row < live)[:, None] & inside, other=0.0)
    values = values.to(tl.float32)
    mean = tl.sum(values, 1) / DIM
    centred = tl.where(inside, values - mean[:, None], 0.0)
    return values, mean, 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / DIM + EPS)
