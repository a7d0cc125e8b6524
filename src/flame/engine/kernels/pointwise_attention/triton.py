"""HSTU's attention: sums of silu-weighted values, no softmax, so no row is ever scaled again."""

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import wait_for_kernel_before
from flame.engine.kernels.rows.triton import live_rows

_SILU = """{
    .reg .b32 t;
    .reg .b16 a, b;
    .reg .f32 x, y;
    cvt.rn.f16x2.f32 t, $2, $1;
    tanh.approx.f16x2 t, t;
    mov.b32 {a, b}, t;
    cvt.f32.f16 x, a;
    cvt.f32.f16 y, b;
    fma.rn.f32 x, x, $1, $1;
    fma.rn.f32 y, y, $2, $2;
    cvt.rn.TYPE.f32 $0, y, x;
    }"""
_SILU_BF16 = tl.constexpr(_SILU.replace("TYPE", "bf16x2"))
_SILU_FP16 = tl.constexpr(_SILU.replace("TYPE", "f16x2"))


@triton.jit
def pointwise_attention(
    words,
    states,
    rows,
    own,
    events,
    candidates,
    event_tiles,
    candidate_tiles,
    layer,
    scale,
    HEADER: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LENGTHS: tl.constexpr,
    PREFIX: tl.constexpr,
    HEADS: tl.constexpr,
    DA: tl.constexpr,
    DL: tl.constexpr,
    ROW: tl.constexpr,
    Q_AT: tl.constexpr,
    O_AT: tl.constexpr,
    OWN_ROW: tl.constexpr,
    K_AT: tl.constexpr,
    V_AT: tl.constexpr,
    VALUES: tl.constexpr,
    BODY: tl.constexpr,
    CAUSAL: tl.constexpr,
    EXACT: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BA: tl.constexpr,
    BL: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """`BM` rows of one head of one user against its history, `BN` keys at a time from slot 0 on.

    Tiles with the most keys start first: candidates, then events from the newest. `VALUES` is the start of the values
    in a state's body in elements per event slot.
    """
    per_head = event_tiles + candidate_tiles
    order = tl.program_id(0) % per_head
    head = tl.program_id(0) // per_head % HEADS
    user = tl.program_id(0) // (per_head * HEADS)
    tile = per_head - 1 - order
    # Asked for together with the header, not after it: nothing else hides these latencies. Unused slots have no state.
    state = tl.load(states + user)
    capacity = tl.multiple_of(tl.load(state.to(tl.pointer_type(tl.int32)), mask=state != 0, other=0), 16)
    first, live = live_rows(words, tile, user, 0, event_tiles, events, HEADER, CANDIDATES, LENGTHS, PREFIX, BM)
    wait_for_kernel_before(DEPENDENT)
    length = tl.load(state.to(tl.pointer_type(tl.int32)) + 1, mask=state != 0, other=0)
    if live <= 0:
        return
    is_event = tile < event_tiles
    dtype: tl.constexpr = rows.dtype.element_ty
    body = tl.multiple_of((state + BODY).to(tl.pointer_type(dtype)), 16)
    keys = body + capacity.to(tl.int64) * ((layer * HEADS + head) * DA)
    values = body + capacity.to(tl.int64) * (VALUES + (layer * HEADS + head) * DL)

    row = tl.arange(0, BM)
    a = tl.arange(0, BA)
    d = tl.arange(0, BL)
    safe = tl.minimum(row, live - 1)
    mine = rows + (user.to(tl.int64) * (events + candidates) + first) * ROW
    q = tl.load(mine + Q_AT + head * DA + safe[:, None] * ROW + a[None, :], mask=(a < DA)[None, :], other=0.0)
    if CAUSAL:
        whole = tl.where(is_event, tl.minimum(first, length), length) // BN * BN
        seen = tl.where(is_event, tl.minimum(first + BM, length), length)
        last = tl.where(is_event, first + row, length - 1)
    else:
        whole = length // BN * BN
        seen = length
        last = tl.zeros((BM,), tl.int32) + (length - 1)

    sums = tl.zeros((BM, BL), tl.float32)
    if not is_event:
        slots = own + (user.to(tl.int64) * candidates + first - events) * OWN_ROW
        k = tl.load(slots + K_AT + head * DA + safe[:, None] * OWN_ROW + a[None, :], mask=(a < DA)[None, :], other=0.0)
        v = tl.load(slots + V_AT + head * DL + safe[:, None] * OWN_ROW + d[None, :], mask=(d < DL)[None, :], other=0.0)
        itself = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)
        weight = 2.0 * itself / (1.0 + tl.exp(-2.0 * itself))
        sums += weight[:, None] * v.to(tl.float32)
    n = tl.arange(0, BN)
    k_at = n[:, None] * DA + a[None, :]
    v_at = n[:, None] * DL + d[None, :]
    for start in range(0, whole, BN):
        k = _whole(keys + start * DA + k_at, a, DA, BA)
        v = _whole(values + start * DL + v_at, d, DL, BL)
        weights = silu_of_half(tl.dot(q, tl.trans(k), input_precision=DOT), dtype, EXACT)
        sums = tl.dot(weights, v, sums, input_precision=DOT)
    for start in range(whole, seen, BN):
        there = (start + n < length)[:, None]
        k = tl.load(keys + start * DA + k_at, mask=there & (a < DA)[None, :], other=0.0)
        v = tl.load(values + start * DL + v_at, mask=there & (d < DL)[None, :], other=0.0)
        half = tl.dot(q, tl.trans(k), input_precision=DOT)
        half = tl.where((start + n)[None, :] <= last[:, None], half, 0.0)
        sums = tl.dot(silu_of_half(half, dtype, EXACT), v, sums, input_precision=DOT)

    o = mine + O_AT + head * DL + row[:, None] * ROW + d[None, :]
    tl.store(o, (sums * scale).to(dtype), mask=(row < live)[:, None] & (d < DL)[None, :])


@triton.jit
def silu_of_half(half, dtype: tl.constexpr, EXACT: tl.constexpr):
    """silu(2 h) = h tanh(h) + h, in the type of the product behind it.

    One special-function instruction for two elements: tanh in fp16, whose error is that of the fp32 approximation.
    """
    if EXACT:
        weights = (2.0 * half / (1.0 + tl.exp(-2.0 * half))).to(dtype)
    elif dtype == tl.bfloat16:
        weights = tl.inline_asm_elementwise(_SILU_BF16, "=r,f,f", [half], tl.bfloat16, True, 2)
    else:
        weights = tl.inline_asm_elementwise(_SILU_FP16, "=r,f,f", [half], tl.float16, True, 2)
    return weights


@triton.jit
def _whole(pointers, column, DIM: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows of `DIM` elements as `COLUMNS`, 0 behind them."""
    if COLUMNS == DIM:
        return tl.load(pointers)
    return tl.load(pointers, mask=(column < DIM)[None, :], other=0.0)
