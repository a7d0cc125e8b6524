"""Device code of a fusion in several launches: products over tiles of rows and columns, and what stands between."""

# mypy: disable-error-code="assignment, misc"
# Tuples of tensors grow in loops that Triton unrolls.

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import wait_for_kernel_before


@triton.jit
def product(
    words,
    rows,
    matrix,
    bias,
    out,
    first_row,
    user_stride,
    block_stride,
    row_stride,
    out_user,
    out_block,
    out_row,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HEADER_WORDS: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (tiles of columns, tiles of candidates of every block, users): rows by a matrix `[inputs, outputs]`.

    The activation is "none", "relu", or "gate", which multiplies what stands in `out` by the sigmoid.
    """
    user = tl.program_id(2).to(tl.int64)
    block = tl.program_id(1) % BLOCKS
    start = tl.program_id(1) // BLOCKS * ROWS
    count = tl.load(words + user * HEADER_WORDS + COUNT_WORD)
    wait_for_kernel_before(DEPENDENT)
    if start >= count:
        return
    candidate = start + tl.arange(0, ROWS)
    live = candidate < count
    at = rows + user * user_stride + block * block_stride + (first_row + candidate) * row_stride
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < OUTPUTS
    biases = tl.load(bias + column, mask=within, other=0.0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(0, INPUTS, STEP):
        inner = step + tl.arange(0, STEP)
        known = inner < INPUTS
        part = tl.load(at[:, None] + inner[None, :], mask=live[:, None] & known[None, :], other=0.0)
        of = matrix + inner[:, None] * OUTPUTS + column[None, :]
        total = tl.dot(
            part, tl.load(of, mask=known[:, None] & within[None, :], other=0.0), total, input_precision="ieee"
        )
    total += biases[None, :]
    to = (out + user * out_user + block * out_block + candidate * out_row)[:, None] + column[None, :]
    seen = live[:, None] & within[None, :]
    if ACTIVATION == "relu":
        total = tl.maximum(total, 0.0)
    if ACTIVATION == "gate":
        total = tl.load(to, mask=seen, other=0.0).to(tl.float32) * tl.sigmoid(total)
    tl.store(to, total.to(out.dtype.element_ty), mask=seen)


@triton.jit
def attend(
    words,
    qkv,
    x,
    temperatures,
    out,
    first_row,
    user_stride,
    block_stride,
    row_stride,
    room,
    BLOCKS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    HEADER_WORDS: tl.constexpr,
    SCENARIO_WORD: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    ROWS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (tiles of candidates, heads, users): attention among the blocks of a candidate, and the residual."""
    user = tl.program_id(2).to(tl.int64)
    start = tl.program_id(0) * ROWS
    count = tl.load(words + user * HEADER_WORDS + COUNT_WORD)
    wait_for_kernel_before(DEPENDENT)
    if start >= count:
        return
    temperature = tl.load(temperatures + tl.load(words + user * HEADER_WORDS + SCENARIO_WORD))
    candidate = start + tl.arange(0, ROWS)
    inner = tl.arange(0, HEAD_PADDED)
    column = tl.program_id(1) * HEAD + inner
    seen = (candidate < count)[:, None] & (inner < HEAD)[None, :]
    at = qkv + (user * room + candidate)[:, None] * (BLOCKS * 3 * DIM) + column[None, :]
    to = out + (user * room + candidate)[:, None] * (BLOCKS * DIM) + column[None, :]
    own = x + user * user_stride + (first_row + candidate)[:, None] * row_stride + column[None, :]
    keys = ()
    values = ()
    for block in tl.static_range(BLOCKS):
        keys += (tl.load(at + (3 * block + 1) * DIM, mask=seen, other=0.0).to(tl.float32),)
        values += (tl.load(at + (3 * block + 2) * DIM, mask=seen, other=0.0).to(tl.float32),)
    for block in tl.static_range(BLOCKS):
        queries = tl.load(at + 3 * block * DIM, mask=seen, other=0.0).to(tl.float32) / temperature
        logits = ()
        for other in tl.static_range(BLOCKS):
            logits += (tl.sum(queries * keys[other], 1),)
        most = logits[0]
        for other in tl.static_range(1, BLOCKS):
            most = tl.maximum(most, logits[other])
        total = tl.zeros((ROWS,), tl.float32)
        attended = tl.zeros((ROWS, HEAD_PADDED), tl.float32)
        for other in tl.static_range(BLOCKS):
            weight = tl.exp(logits[other] - most)
            total += weight
            attended += weight[:, None] * values[other]
        attended = attended / total[:, None]
        if RESIDUAL_FIRST:
            attended += tl.load(own + block * block_stride, mask=seen, other=0.0).to(tl.float32)
        tl.store(to + block * DIM, attended.to(out.dtype.element_ty), mask=seen)


@triton.jit
def norm(
    words,
    change,
    middle,
    x,
    vectors,
    out,
    first_row,
    user_stride,
    block_stride,
    row_stride,
    room,
    BLOCKS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    HEADER_WORDS: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    ROWS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (tiles of candidates, blocks, users): the norm of a layer and its residual."""
    user = tl.program_id(2).to(tl.int64)
    start = tl.program_id(0) * ROWS
    block = tl.program_id(1)
    count = tl.load(words + user * HEADER_WORDS + COUNT_WORD)
    wait_for_kernel_before(DEPENDENT)
    if start >= count:
        return
    candidate = start + tl.arange(0, ROWS)
    column = tl.arange(0, DIM_PADDED)
    within = (column < DIM)[None, :]
    seen = (candidate < count)[:, None] & within
    at = ((user * room + candidate) * BLOCKS + block)[:, None] * DIM + column[None, :]
    body = tl.load(change + at, mask=seen, other=0.0).to(tl.float32)
    if RESIDUAL_FIRST:
        residual = tl.load(middle + at, mask=seen, other=0.0).to(tl.float32)
    else:
        own = x + user * user_stride + block * block_stride + (first_row + candidate)[:, None] * row_stride
        body += tl.load(own + column[None, :], mask=seen, other=0.0).to(tl.float32)
        residual = tl.zeros((ROWS, DIM_PADDED), tl.float32)
    mean = tl.sum(body, 1) / DIM
    centred = tl.where(within, body - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / DIM + 1e-5)
    gain = tl.load(vectors + column, mask=column < DIM, other=0.0)
    shift = tl.load(vectors + DIM + column, mask=column < DIM, other=0.0)
    normal = residual + centred * scale[:, None] * gain[None, :] + shift[None, :]
    tl.store(out + at, normal.to(out.dtype.element_ty), mask=seen)
