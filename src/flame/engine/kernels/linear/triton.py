"""A linear layer over live rows; each range of output columns goes where it is needed."""

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import wait_for_kernel_before
from flame.engine.kernels.rows.triton import live_rows


@triton.jit
def linear(
    words,
    states,
    x,
    weight,
    bias,
    column_sums,
    statistics,
    residual,
    y,
    own,
    events,
    candidates,
    event_tiles,
    candidate_tiles,
    event_column,
    layer,
    HEADER: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LENGTHS: tl.constexpr,
    PREFIX: tl.constexpr,
    BLOCKS: tl.constexpr,
    K: tl.constexpr,
    X_ROW: tl.constexpr,
    X_AT: tl.constexpr,
    Y_ROW: tl.constexpr,
    OWN_ROW: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
    NORMED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BODY: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One tile of `BM` rows and `BN` columns. Column tiles of one row tile run side by side and share it in L2.

    PARTS  for each part: first column tile, column tile behind it, first column at its destination, width,
           activation; and, where it goes to states and `own` instead of `y`: start in the body and step from layer to
           layer (in elements per event slot), heads, head dim
    """
    column = tl.program_id(0) % COLUMN_TILES
    tile = tl.program_id(0) // COLUMN_TILES
    pair = tile // (event_tiles + candidate_tiles)
    tile = tile % (event_tiles + candidate_tiles)
    user = pair // BLOCKS
    block = pair % BLOCKS
    first, live = live_rows(words, tile, user, block, event_tiles, events, HEADER, CANDIDATES, LENGTHS, PREFIX, BM)
    wait_for_kernel_before(DEPENDENT)
    if live <= 0:
        return
    is_event = tile < event_tiles
    if is_event & (column < event_column):
        return

    row = tl.arange(0, BM)
    base = pair.to(tl.int64) * (events + candidates) + first
    safe = tl.minimum(row, live - 1)
    k = tl.arange(0, BK)
    c = tl.arange(0, BN)
    outputs = (block * COLUMN_TILES + column) * BN + c
    xs = x + base * X_ROW + X_AT
    ws = weight + (block * COLUMN_TILES + column).to(tl.int64) * (BN * K)
    x_at = safe[:, None] * X_ROW + k[None, :]
    w_at = c[:, None] * K + k[None, :]
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        if K % BK == 0:
            a = tl.load(xs + start + x_at)
            w = tl.load(ws + start + w_at)
        else:
            a = tl.load(xs + start + x_at, mask=(start + k < K)[None, :], other=0.0)
            w = tl.load(ws + start + w_at, mask=(start + k < K)[None, :], other=0.0)
        sums = tl.dot(a, tl.trans(w), sums, input_precision=DOT)

    if NORMED:
        mean = tl.load(statistics + (base + safe) * 2)
        scale = tl.load(statistics + (base + safe) * 2 + 1)
        sums = (sums - mean[:, None] * tl.load(column_sums + outputs)[None, :]) * scale[:, None]
    sums += tl.load(bias + outputs)[None, :]
    valid = (row < live)[:, None]
    for part in tl.static_range(len(PARTS)):
        if (column >= PARTS[part][0]) & (column < PARTS[part][1]):
            n = (column - PARTS[part][0]) * BN + c
            keep = valid if PARTS[part][3] % BN == 0 else valid & (n < PARTS[part][3])[None, :]
            values = _activated(sums, PARTS[part][4])
            if PARTS[part][5] < 0:
                y_at = row[:, None] * Y_ROW + n[None, :]
                if RESIDUAL:
                    rs = residual + base * Y_ROW + PARTS[part][2]
                    values += tl.load(rs + y_at, mask=keep, other=0.0).to(tl.float32)
                tl.store(y + base * Y_ROW + PARTS[part][2] + y_at, values.to(y.dtype.element_ty), mask=keep)
            elif is_event:
                body, capacity = _state(states + user, y.dtype.element_ty, BODY)
                plane = PARTS[part][5] + layer * PARTS[part][6] + block * PARTS[part][7] * PARTS[part][8]
                body += capacity.to(tl.int64) * plane + first * PARTS[part][8]
                body_at = n // PARTS[part][8] * PARTS[part][8] * capacity + n % PARTS[part][8]
                to = body + row[:, None] * PARTS[part][8] + body_at[None, :]
                tl.store(to, values.to(y.dtype.element_ty), mask=keep)
            else:
                slots = own + (pair.to(tl.int64) * candidates + first - events) * OWN_ROW + PARTS[part][2]
                tl.store(slots + row[:, None] * OWN_ROW + n[None, :], values.to(y.dtype.element_ty), mask=keep)


@triton.jit
def _activated(values, KIND: tl.constexpr):
    if KIND == 1:
        values = tl.maximum(values, 0.0)
    if KIND == 2:
        values = values / (1.0 + tl.exp(-values))
    return values


@triton.jit
def _state(address, dtype: tl.constexpr, BODY: tl.constexpr):
    """A state's body as elements, and its capacity; aligned as memory of its own is."""
    state = tl.load(address)
    capacity = tl.multiple_of(tl.load(state.to(tl.pointer_type(tl.int32))), 16)
    return tl.multiple_of((state + BODY).to(tl.pointer_type(dtype)), 16), capacity
