"""Device code of the fusion for launches of few candidates: 16 rows a program, a head a warp."""

# mypy: disable-error-code="assignment, misc"
# Tuples of tensors grow in loops that Triton unrolls.

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import let_kernel_behind_begin, wait_for_kernel_before

_FFN_CHUNK = tl.constexpr(64)


@triton.jit
def slim_fusion(
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
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    FFN: tl.constexpr,
    SQUEEZED: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    HEADER_WORDS: tl.constexpr,
    SCENARIO_WORD: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (tiles of candidates, users); rows of a tile as in the fusion of many candidates, and bit for bit the same.

    Tensors are `[PIECES, ROWS, PIECE]`: heads, padded to a power of two, are a product's batch, which has one warp
    each. So a warp's rows lie as in the other kernel, every sum over columns has its order, and products add up the
    same inputs in the same order, with zeros behind them. All is one chain, so everything is asked for well before
    it is needed, the first weights while the kernel before still runs. Rows beyond the count are read unmasked: `x` has
    whole tiles, and a row is nobody else's.
    """
    COLUMNS: tl.constexpr = HEADS * PIECE
    dtype: tl.constexpr = x.dtype.element_ty
    after = vectors + (6 + BLOCKS) * COLUMNS
    user = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * TILE
    header = words + user * HEADER_WORDS
    count = tl.load(header + COUNT_WORD)
    scenario = tl.load(header + SCENARIO_WORD)
    row = tl.arange(0, ROWS)
    block = row // TILE
    candidate = start + row % TILE
    rows = x + user * user_stride + (first_row + candidate) * row_stride + block % BLOCKS * block_stride
    column = tl.arange(0, PIECES * PIECE)
    inside = (column < COLUMNS) & (column % PIECE < HEAD)
    head = tl.arange(0, PIECES)
    inner = tl.arange(0, PIECE)
    there = (head < HEADS)[:, None, None] & (inner < HEAD)[None, None, :]
    place = head[:, None, None] * HEAD + inner[None, None, :]
    query_bias = _vector(vectors, HEADS, PIECE, PIECES)
    key_bias = _vector(vectors + COLUMNS, HEADS, PIECE, PIECES)
    value_bias = _vector(vectors + 2 * COLUMNS, HEADS, PIECE, PIECES)
    queries_of = _columns(qkv, COLUMNS, 0, PIECES * PIECE, HEADS, PIECE, PIECES)
    keys_of = _columns(qkv + COLUMNS * COLUMNS, COLUMNS, 0, PIECES * PIECE, HEADS, PIECE, PIECES)
    values_of = _columns(qkv + 2 * COLUMNS * COLUMNS, COLUMNS, 0, PIECES * PIECE, HEADS, PIECE, PIECES)
    wait_for_kernel_before(DEPENDENT)
    let_kernel_behind_begin(DEPENDENT)
    inputs = tl.load(
        rows[:, None] + (column // PIECE * HEAD + column % PIECE)[None, :], mask=inside[None, :], other=0.0
    )
    own = tl.load(rows[None, :, None] + place, mask=there, other=0.0)
    if start >= count:
        return
    temperature = tl.load(after + FFN + SQUEEZED + scenario)
    operand = tl.broadcast_to(inputs[None, :, :], (PIECES, ROWS, PIECES * PIECE))
    none = tl.zeros((PIECES, ROWS, PIECE), tl.float32)
    # A plain sum would become the product's accumulator, which rounds in another way.
    queries = tl.fma(tl.dot(operand, queries_of, none, input_precision="ieee"), 1.0, query_bias) / temperature
    keys = tl.fma(tl.dot(operand, keys_of, none, input_precision="ieee"), 1.0, key_bias)
    values = tl.dot(operand, values_of, none, input_precision="ieee")
    first_of = _ffn_chunk(ffn_in, 0, FFN, HEADS, PIECE, PIECES)
    last_of = _columns(ffn_out, FFN, FFN - _FFN_CHUNK, _FFN_CHUNK, HEADS, PIECE, PIECES)
    squeeze_of = _squeeze_matrix(squeeze, BLOCKS, HEADS, PIECE, PIECES, SQUEEZED, ROWS, TILE)
    excite_of = ()
    for part in tl.static_range(BLOCKS):
        excite_of += (_columns(excite, BLOCKS * SQUEEZED, part * SQUEEZED, SQUEEZED, HEADS, PIECE, PIECES),)
    middle = _attend(queries, keys, values, BLOCKS, PIECE, PIECES, ROWS, TILE) + value_bias
    if RESIDUAL_FIRST:
        middle += own.to(tl.float32)
    out_bias = _vector(vectors + 3 * COLUMNS, HEADS, PIECE, PIECES)
    gain = _vector(vectors + 4 * COLUMNS, HEADS, PIECE, PIECES)
    shift = _vector(vectors + 5 * COLUMNS, HEADS, PIECE, PIECES)
    gates = tl.zeros((PIECES, ROWS, PIECE), tl.float32)
    for part in tl.static_range(BLOCKS):
        gate_bias = _vector(vectors + (6 + part) * COLUMNS, HEADS, PIECE, PIECES)
        gates = tl.where((block == part)[None, :, None], gate_bias, gates)
    squeeze_bias = tl.load(after + FFN + tl.arange(0, SQUEEZED))
    body = out_bias + _feed_forward(
        middle, ffn_in, ffn_out, after, first_of, last_of, dtype, FFN, HEADS, PIECE, PIECES, ROWS
    )
    if not RESIDUAL_FIRST:
        body += own.to(tl.float32)
    fused = _norm(body, gain, shift, DIM, HEADS, HEAD, PIECE, PIECES, ROWS)
    if RESIDUAL_FIRST:
        fused += middle

    squeezed = _squeeze(fused, squeeze_of, squeeze_bias, dtype, BLOCKS, PIECE, PIECES, SQUEEZED, ROWS, TILE)
    gates = _excite(squeezed, excite_of, gates, dtype, BLOCKS, PIECE, PIECES, SQUEEZED, ROWS, TILE)
    known = there & ((candidate < count) & (block < BLOCKS))[None, :, None]
    to = wide + user * wide_user + candidate * wide_row + block * DIM
    tl.store(to[None, :, None] + place, (fused * tl.sigmoid(gates)).to(dtype), mask=known)


@triton.jit
def _columns(
    matrix,
    ROWS: tl.constexpr,
    first,
    MOST: tl.constexpr,
    HEADS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Rows `first` to `first + MOST` of a matrix `[ROWS, columns]`, for each head its columns: `[PIECES, MOST, PIECE]`.

    Zeros beyond the matrix.
    """
    head = tl.arange(0, PIECES)
    row = first + tl.arange(0, MOST)
    column = head[:, None, None] * PIECE + tl.arange(0, PIECE)[None, None, :]
    known = (head < HEADS)[:, None, None] & (row < ROWS)[None, :, None]
    return tl.load(matrix + row[None, :, None] * (HEADS * PIECE) + column, mask=known, other=0.0)


@triton.jit
def _vector(vector, HEADS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr):
    """`[columns]` as `[PIECES, 1, PIECE]`.

    Two numbers a load: a tensor with fewer elements than threads is loaded where it is needed, others go through
    shared memory, each with its barriers.
    """
    head = tl.arange(0, PIECES)
    at = vector.to(tl.pointer_type(tl.int64)) + head[:, None] * (PIECE // 2) + tl.arange(0, PIECE // 2)[None, :]
    both = tl.load(at, mask=(head < HEADS)[:, None], other=0)
    low = both.to(tl.int32).to(tl.float32, bitcast=True)
    high = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return tl.reshape(tl.join(low, high), (PIECES, PIECE))[:, None, :]


@triton.jit
def _attend(
    queries,
    keys,
    values,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """All heads of the attention of every row over the blocks of its candidate, its own block first."""
    logits = ()
    others = ()
    for turn in tl.static_range(BLOCKS):
        logits += (tl.sum(queries * _turned(keys, turn, BLOCKS, PIECE, PIECES, ROWS, TILE), 2),)
        others += (_turned(values, turn, BLOCKS, PIECE, PIECES, ROWS, TILE),)
    most = logits[0]
    for turn in tl.static_range(1, BLOCKS):
        most = tl.maximum(most, logits[turn])
    total = tl.zeros((PIECES, ROWS), tl.float32)
    attended = tl.zeros((PIECES, ROWS, PIECE), tl.float32)
    for turn in tl.static_range(BLOCKS):
        weight = tl.exp(logits[turn] - most)
        total += weight
        attended += weight[:, :, None] * others[turn]
    return attended * (1.0 / total)[:, :, None]


@triton.jit
def _turned(
    values,
    turn: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """In every row what the row of its candidate's block `turn` further has; with two blocks a thread has both."""
    if turn == 0:
        return values
    PADDED: tl.constexpr = ROWS // TILE
    block = tl.arange(0, PADDED)[None, :, None, None]
    by_block = tl.reshape(values, (PIECES, PADDED, TILE, PIECE))
    turned = tl.zeros((PIECES, PADDED, TILE, PIECE), tl.float32)
    for part in tl.static_range(BLOCKS):
        one = tl.sum(tl.where(block == part, by_block, 0.0), 1, keep_dims=True)
        turned = tl.where((block + turn) % BLOCKS == part, one, turned)
    return tl.reshape(turned, (PIECES, ROWS, PIECE))


@triton.jit
def _ffn_chunk(ffn_in, start, FFN: tl.constexpr, HEADS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr):
    """The columns of some hidden units, `[PIECES * PIECE, units]`."""
    column = tl.arange(0, PIECES * PIECE)
    at = ffn_in + column[:, None] * FFN + (start + tl.arange(0, _FFN_CHUNK))[None, :]
    return tl.load(at, mask=(column < HEADS * PIECE)[:, None], other=0.0)


@triton.jit
def _feed_forward(
    rows,
    ffn_in,
    ffn_out,
    biases,
    first,
    last,
    dtype: tl.constexpr,
    FFN: tl.constexpr,
    HEADS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The two products, without the second bias; one chunk of hidden units is made while the one before is used.

    `first` are the columns of the first chunk, `last` the rows of the last.
    """
    chunk = tl.arange(0, _FFN_CHUNK)
    bias = tl.load(biases + chunk)
    operand = tl.reshape(tl.permute(rows.to(dtype), (1, 0, 2)), (ROWS, PIECES * PIECE))
    none = tl.zeros((ROWS, _FFN_CHUNK), tl.float32)
    hidden = tl.dot(operand, first, none, input_precision="ieee")
    hidden = tl.maximum(tl.fma(hidden, 1.0, bias[None, :]), 0.0).to(dtype)
    total = tl.zeros((PIECES, ROWS, PIECE), tl.float32)
    for start in range(_FFN_CHUNK, FFN, _FFN_CHUNK):
        into = _ffn_chunk(ffn_in, start, FFN, HEADS, PIECE, PIECES)
        bias = tl.load(biases + start + chunk)
        out = _columns(ffn_out, FFN, start - _FFN_CHUNK, _FFN_CHUNK, HEADS, PIECE, PIECES)
        wide = tl.broadcast_to(hidden[None, :, :], (PIECES, ROWS, _FFN_CHUNK))
        total = tl.dot(wide, out, total, input_precision="ieee")
        hidden = tl.dot(operand, into, none, input_precision="ieee")
        hidden = tl.maximum(tl.fma(hidden, 1.0, bias[None, :]), 0.0).to(dtype)
    wide = tl.broadcast_to(hidden[None, :, :], (PIECES, ROWS, _FFN_CHUNK))
    return tl.dot(wide, last, total, input_precision="ieee")


@triton.jit
def _over_heads(values, HEADS: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr):
    """The sum of `[PIECES, ROWS]` over the heads, one after the other."""
    parts = (tl.permute(values, (1, 0)),)
    for level in tl.static_range(3):
        if PIECES >> level > 1:
            halves = ()
            for part in tl.static_range(1 << level):
                low, high = tl.split(tl.permute(tl.reshape(parts[part], (ROWS, 2, PIECES >> (level + 1))), (0, 2, 1)))
                halves += (low, high)
            parts = halves
    total = tl.zeros((ROWS,), tl.float32)
    for piece in tl.static_range(HEADS):
        total += tl.reshape(parts[piece], (ROWS,))
    return total


@triton.jit
def _norm(
    rows,
    gain,
    shift,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """LayerNorm."""
    inner = tl.arange(0, PIECE)
    mean = _over_heads(tl.sum(rows, 2), HEADS, PIECES, ROWS) / DIM
    centred = tl.where((inner < HEAD)[None, None, :], rows - mean[None, :, None], 0.0)
    squares = _over_heads(tl.sum(centred * centred, 2), HEADS, PIECES, ROWS)
    scale = 1.0 / tl.sqrt(squares / DIM + 1e-5)
    return (rows - mean[None, :, None]) * scale[None, :, None] * gain + shift


@triton.jit
def _squeeze_matrix(
    squeeze,
    BLOCKS: tl.constexpr,
    HEADS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    SQUEEZED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """`[blocks * PIECES * PIECE, SQUEEZED]` with blocks and heads padded."""
    unit = tl.arange(0, SQUEEZED)
    column = tl.arange(0, ROWS // TILE * PIECES * PIECE)
    part, own = column // (PIECES * PIECE), column % (PIECES * PIECE)
    known = (part < BLOCKS) & (own < HEADS * PIECE)
    at = squeeze + (part * (HEADS * PIECE) + own)[:, None] * SQUEEZED + unit[None, :]
    return tl.load(at, mask=known[:, None], other=0.0)


@triton.jit
def _squeeze(
    fused,
    matrix,
    bias,
    dtype: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    SQUEEZED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The gate's hidden units of every row's candidate, in the program's precision."""
    PADDED: tl.constexpr = ROWS // TILE
    WIDTH: tl.constexpr = PADDED * PIECES * PIECE
    blocks = tl.permute(tl.reshape(fused.to(dtype), (PIECES, PADDED, TILE, PIECE)), (2, 1, 0, 3))
    all_blocks = tl.reshape(blocks, (1, TILE, WIDTH))
    operand = tl.reshape(tl.broadcast_to(all_blocks, (PADDED, TILE, WIDTH)), (ROWS, WIDTH))
    total = tl.zeros((ROWS, SQUEEZED), tl.float32)
    total = tl.dot(operand, matrix, total, input_precision="ieee")
    return tl.maximum(tl.fma(total, 1.0, bias[None, :]), 0.0).to(dtype)


@triton.jit
def _excite(
    squeezed,
    matrix,
    biases,
    dtype: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    SQUEEZED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The gates before their sigmoid: every row by its own block's part of the matrix, upon that block's biases."""
    block = tl.arange(0, ROWS) // TILE
    gates = biases
    for part in tl.static_range(BLOCKS):
        operand = tl.where((block == part)[:, None], squeezed, 0.0)
        wide = tl.broadcast_to(operand[None, :, :], (PIECES, ROWS, SQUEEZED))
        gates = tl.dot(wide, matrix[part], gates, input_precision="ieee")
    return gates
