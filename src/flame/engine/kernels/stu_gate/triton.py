"""HSTU's gate over live rows."""

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import wait_for_kernel_before
from flame.engine.kernels.norm.triton import normed_rows
from flame.engine.kernels.rows.triton import live_rows


@triton.jit
def stu_gate(
    words,
    rows,
    gain,
    shift,
    events,
    candidates,
    event_tiles,
    candidate_tiles,
    HEADER: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LENGTHS: tl.constexpr,
    PREFIX: tl.constexpr,
    DIM: tl.constexpr,
    ROW: tl.constexpr,
    U_AT: tl.constexpr,
    O_AT: tl.constexpr,
    Y_AT: tl.constexpr,
    EPS: tl.constexpr,
    BM: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """y = u * (norm(o) * gain + shift), all three `DIM` columns of the same rows."""
    tile = tl.program_id(0)
    user = tile // (event_tiles + candidate_tiles)
    tile = tile % (event_tiles + candidate_tiles)
    first, live = live_rows(words, tile, user, 0, event_tiles, events, HEADER, CANDIDATES, LENGTHS, PREFIX, BM)
    wait_for_kernel_before(DEPENDENT)
    if live <= 0:
        return
    row = tl.arange(0, BM)
    column = tl.arange(0, COLUMNS)
    keep = (row < live)[:, None] & (column < DIM)[None, :]
    rows += (user.to(tl.int64) * (events + candidates) + first) * ROW
    at = row[:, None] * ROW + column[None, :]
    u = tl.load(rows + U_AT + at, mask=keep, other=0.0).to(tl.float32)
    values, mean, scale = normed_rows(rows + O_AT, row, live, ROW, DIM, EPS, COLUMNS)
    g = tl.load(gain + column, mask=column < DIM, other=0.0)
    s = tl.load(shift + column, mask=column < DIM, other=0.0)
    values = u * ((values - mean[:, None]) * scale[:, None] * g[None, :] + s[None, :])
    tl.store(rows + Y_AT + at, values.to(rows.dtype.element_ty), mask=keep)
