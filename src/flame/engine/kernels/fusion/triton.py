"""Device code of the fusion in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl

_STEP = tl.constexpr(32)
_FFN_CHUNK = tl.constexpr(64)


@triton.jit
def fusion(
    words,
    x,
    wide,
    qkv,
    ffn_in,
    ffn_out,
    squeeze,
    excite,
    vectors,
    first_row,
    user_stride,
    block_stride,
    row_stride,
    wide_user,
    wide_row,
    BLOCKS: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    FFN: tl.constexpr,
    SQUEEZED: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    HEADER_WORDS: tl.constexpr,
    SCENARIO_WORD: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (tiles of candidates, users). Row b * TILE + m of a tile is block b of its m-th candidate."""
    COLUMNS: tl.constexpr = HEADS_PADDED * HEAD_PADDED
    ROWS: tl.constexpr = BLOCKS_PADDED * TILE
    user = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * TILE
    header = words + user * HEADER_WORDS
    count = tl.load(header + COUNT_WORD)
    if start >= count:
        return
    scenario = tl.load(header + SCENARIO_WORD)
    row = tl.arange(0, ROWS)
    block = row // TILE
    candidate = start + row % TILE
    live = (candidate < count) & (block < BLOCKS)
    at = x + user * user_stride + block * block_stride + (first_row + candidate) * row_stride
    column = tl.arange(0, COLUMNS)
    after = vectors + (6 + BLOCKS) * COLUMNS
    temperature = tl.load(after + FFN + SQUEEZED + scenario)

    queries, keys, values = _project(at, live, qkv, DIM, HEADS, HEAD, HEAD_PADDED, ROWS, COLUMNS)
    queries += tl.load(vectors + column)[None, :]
    keys += tl.load(vectors + COLUMNS + column)[None, :]
    values += tl.load(vectors + 2 * COLUMNS + column)[None, :]
    attended = _attend(
        queries / temperature, keys, values, BLOCKS, BLOCKS_PADDED, TILE, HEADS_PADDED, HEAD_PADDED, ROWS, COLUMNS
    )

    source, known = _sources(column, HEADS, HEAD, HEAD_PADDED)
    own = tl.load(at[:, None] + source[None, :], mask=live[:, None] & known[None, :], other=0.0).to(tl.float32)
    if RESIDUAL_FIRST:
        attended += own
    change = _feed_forward(attended.to(x.dtype.element_ty), ffn_in, ffn_out, after, FFN, HEADS * HEAD_PADDED, COLUMNS)
    change += tl.load(vectors + 3 * COLUMNS + column)[None, :]
    gain = tl.load(vectors + 4 * COLUMNS + column)
    shift = tl.load(vectors + 5 * COLUMNS + column)
    if RESIDUAL_FIRST:
        fused = attended + _norm(change, gain, shift, known, DIM)
    else:
        fused = _norm(own + change, gain, shift, known, DIM)

    gate = _gate(
        fused.to(x.dtype.element_ty),
        block,
        squeeze,
        excite,
        after + FFN,
        vectors + 6 * COLUMNS,
        BLOCKS,
        BLOCKS_PADDED,
        TILE,
        SQUEEZED,
        ROWS,
        COLUMNS,
    )
    out = wide + user * wide_user + candidate * wide_row + block * DIM
    result = (fused * tl.sigmoid(gate)).to(wide.dtype.element_ty)
    tl.store(out[:, None] + source[None, :], result, mask=live[:, None] & known[None, :])


@triton.jit
def _sources(column, HEADS: tl.constexpr, HEAD: tl.constexpr, HEAD_PADDED: tl.constexpr):
    """Where a padded column lies in a row as it is, and whether it does."""
    if HEAD == HEAD_PADDED:
        source = column
        known = column < HEADS * HEAD
    else:
        inner = column % HEAD_PADDED
        source = column // HEAD_PADDED * HEAD + inner
        known = (inner < HEAD) & (column < HEADS * HEAD_PADDED)
    return source, known


@triton.jit
def _project(
    at,
    live,
    qkv,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)
    queries = tl.zeros((ROWS, COLUMNS), tl.float32)
    keys = tl.zeros((ROWS, COLUMNS), tl.float32)
    values = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, HEADS * HEAD_PADDED, _STEP):
        inner = start + tl.arange(0, _STEP)
        source, known = _sources(inner, HEADS, HEAD, HEAD_PADDED)
        part = tl.load(at[:, None] + source[None, :], mask=live[:, None] & known[None, :], other=0.0)
        matrix = qkv + inner[:, None] * COLUMNS + column[None, :]
        queries = tl.dot(part, tl.load(matrix), queries, input_precision="ieee")
        keys = tl.dot(part, tl.load(matrix + COLUMNS * COLUMNS), keys, input_precision="ieee")
        values = tl.dot(part, tl.load(matrix + 2 * COLUMNS * COLUMNS), values, input_precision="ieee")
    return queries, keys, values


@triton.jit
def _attend(
    queries,
    keys,
    values,
    BLOCKS: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
    TILE: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Softmax attention among the blocks of each candidate; queries are divided by the temperature."""
    queries = tl.reshape(queries, (BLOCKS_PADDED, TILE, HEADS, HEAD))
    keys = tl.reshape(keys, (BLOCKS_PADDED, TILE, HEADS, HEAD))
    values = tl.reshape(values, (BLOCKS_PADDED, TILE, HEADS, HEAD))
    place = tl.arange(0, BLOCKS_PADDED)[:, None, None, None]
    logits = ()
    for other in tl.static_range(BLOCKS):
        theirs = tl.sum(tl.where(place == other, keys, 0.0), 0)
        logits = logits + (tl.sum(queries * theirs[None, :, :, :], 3),)
    most = logits[0]
    for other in tl.static_range(1, BLOCKS):
        most = tl.maximum(most, logits[other])
    total = tl.zeros((BLOCKS_PADDED, TILE, HEADS), tl.float32)
    attended = tl.zeros((BLOCKS_PADDED, TILE, HEADS, HEAD), tl.float32)
    for other in tl.static_range(BLOCKS):
        weight = tl.exp(logits[other] - most)
        theirs = tl.sum(tl.where(place == other, values, 0.0), 0)
        total += weight
        attended += weight[:, :, :, None] * theirs[None, :, :, :]
    return tl.reshape(attended / total[:, :, :, None], (ROWS, COLUMNS))


@triton.jit
def _feed_forward(rows, ffn_in, ffn_out, bias, FFN: tl.constexpr, LIVE: tl.constexpr, COLUMNS: tl.constexpr):
    """The two products, without the second bias; columns from `LIVE` on are padding and are not fetched."""
    column = tl.arange(0, COLUMNS)
    known = column < LIVE
    total = tl.zeros((rows.shape[0], COLUMNS), tl.float32)
    for start in range(0, FFN, _FFN_CHUNK):
        inner = start + tl.arange(0, _FFN_CHUNK)
        first = tl.load(ffn_in + column[:, None] * FFN + inner[None, :], mask=known[:, None], other=0.0)
        second = tl.load(ffn_out + inner[:, None] * COLUMNS + column[None, :], mask=known[None, :], other=0.0)
        hidden = tl.dot(rows, first, input_precision="ieee") + tl.load(bias + inner)[None, :]
        hidden = tl.maximum(hidden, 0.0).to(rows.dtype)
        total = tl.dot(hidden, second, total, input_precision="ieee")
    return total


@triton.jit
def _norm(rows, gain, shift, known, DIM: tl.constexpr):
    mean = tl.sum(rows, 1) / DIM
    centred = tl.where(known[None, :], rows - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / DIM
    return centred * (1.0 / tl.sqrt(variance + 1e-5))[:, None] * gain[None, :] + shift[None, :]


@triton.jit
def _gate(
    rows,
    block,
    squeeze,
    excite,
    squeeze_bias,
    excite_bias,
    BLOCKS: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
    TILE: tl.constexpr,
    SQUEEZED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gate before its sigmoid: every block's rows by that block's part of the matrices."""
    column = tl.arange(0, COLUMNS)
    unit = tl.arange(0, SQUEEZED)
    parts = tl.zeros((ROWS, SQUEEZED), tl.float32)
    for part in range(0, BLOCKS):
        matrix = tl.load(squeeze + (part * COLUMNS + column)[:, None] * SQUEEZED + unit[None, :])
        parts += tl.where((block == part)[:, None], tl.dot(rows, matrix, input_precision="ieee"), 0.0)
    squeezed = tl.sum(tl.reshape(parts, (BLOCKS_PADDED, TILE, SQUEEZED)), 0)
    squeezed = tl.maximum(squeezed + tl.load(squeeze_bias + unit)[None, :], 0.0).to(rows.dtype)
    spread = tl.broadcast_to(squeezed[None, :, :], (BLOCKS_PADDED, TILE, SQUEEZED))
    spread = tl.reshape(spread, (ROWS, SQUEEZED))
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    for part in range(0, BLOCKS):
        matrix = tl.load(excite + (part * SQUEEZED + unit)[:, None] * COLUMNS + column[None, :])
        bias = tl.load(excite_bias + part * COLUMNS + column)
        product = tl.dot(spread, matrix, input_precision="ieee") + bias[None, :]
        gate = tl.where((block == part)[:, None], product, gate)
    return gate
