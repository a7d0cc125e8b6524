"""Device code of the fusion in one kernel."""

# mypy: disable-error-code="assignment, misc"
# Tuples of tensors grow in loops that Triton unrolls.

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import let_kernel_behind_begin, wait_for_kernel_before

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
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PIECE: tl.constexpr,
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
    """Grid (tiles of candidates, users). Row b * TILE + m of a tile is block b of its m-th candidate.

    A row is kept as one piece per head, so that no width has to be a power of two. Nothing passes from row to row but
    the layer's result on its way to the gate: keys and values of a candidate's other blocks are computed once more
    from their rows, which costs less than the exchange.
    """
    COLUMNS: tl.constexpr = HEADS * PIECE
    user = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * TILE
    header = words + user * HEADER_WORDS
    count = tl.load(header + COUNT_WORD)
    scenario = tl.load(header + SCENARIO_WORD)
    wait_for_kernel_before(DEPENDENT)
    let_kernel_behind_begin(DEPENDENT)
    if start >= count:
        return
    row = tl.arange(0, ROWS)
    block = row // TILE
    candidate = start + row % TILE
    live = (candidate < count) & (block < BLOCKS)
    rows = x + user * user_stride + (first_row + candidate) * row_stride
    after = vectors + (6 + BLOCKS) * COLUMNS

    inputs = ()
    for turn in tl.static_range(BLOCKS):
        at = rows + (block + turn) % BLOCKS * block_stride
        for piece in tl.static_range(HEADS):
            inputs += (_load_piece(at, live, piece, HEAD, PIECE),)
    temperature = tl.load(after + FFN + SQUEEZED + scenario)
    middle = ()
    for head in tl.static_range(HEADS):
        attended = _attend(inputs, qkv, vectors, temperature, head, BLOCKS, HEADS, PIECE, ROWS)
        if RESIDUAL_FIRST:
            attended += inputs[head].to(tl.float32)
        middle += (attended,)

    changes = _feed_forward(middle, ffn_in, ffn_out, after, x.dtype.element_ty, FFN, HEADS, PIECE, ROWS)
    bodies = ()
    for piece in tl.static_range(HEADS):
        body = changes[piece] + tl.load(vectors + 3 * COLUMNS + piece * PIECE + tl.arange(0, PIECE))[None, :]
        if not RESIDUAL_FIRST:
            body += inputs[piece].to(tl.float32)
        bodies += (body,)
    normal = _norm(bodies, vectors + 4 * COLUMNS, DIM, HEADS, HEAD, PIECE, ROWS)
    own = wide + user * wide_user + candidate * wide_row
    fused = ()
    for piece in tl.static_range(HEADS):
        result = normal[piece] + middle[piece] if RESIDUAL_FIRST else normal[piece]
        _store_piece(own + block * DIM, live, piece, result, HEAD, PIECE)
        fused += (result,)

    tl.debug_barrier()
    squeezed = _squeeze(own, live, squeeze, after + FFN, BLOCKS, DIM, HEADS, HEAD, PIECE, SQUEEZED, ROWS)
    squeezed = squeezed.to(x.dtype.element_ty)
    gates = _excite(squeezed, block, excite, vectors + 6 * COLUMNS, BLOCKS, HEADS, PIECE, SQUEEZED, ROWS)
    tl.debug_barrier()
    for piece in tl.static_range(HEADS):
        _store_piece(own + block * DIM, live, piece, fused[piece] * tl.sigmoid(gates[piece]), HEAD, PIECE)


@triton.jit
def _load_piece(at, live, piece, HEAD: tl.constexpr, PIECE: tl.constexpr):
    inner = tl.arange(0, PIECE)
    known = live[:, None] & (inner < HEAD)[None, :]
    return tl.load(at[:, None] + (piece * HEAD + inner)[None, :], mask=known, other=0.0)


@triton.jit
def _store_piece(at, live, piece, value, HEAD: tl.constexpr, PIECE: tl.constexpr):
    inner = tl.arange(0, PIECE)
    known = live[:, None] & (inner < HEAD)[None, :]
    tl.store(at[:, None] + (piece * HEAD + inner)[None, :], value.to(at.dtype.element_ty), mask=known)


@triton.jit
def _attend(
    inputs,
    qkv,
    biases,
    temperature,
    head,
    BLOCKS: tl.constexpr,
    HEADS: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One head of the attention of every row over the blocks of its candidate, its own block first."""
    COLUMNS: tl.constexpr = HEADS * PIECE
    queries_of = _matrices(qkv, head, HEADS, PIECE)
    keys_of = _matrices(qkv + COLUMNS * COLUMNS, head, HEADS, PIECE)
    values_of = _matrices(qkv + 2 * COLUMNS * COLUMNS, head, HEADS, PIECE)
    bias = biases + head * PIECE + tl.arange(0, PIECE)
    query_bias = tl.load(bias)
    key_bias = tl.load(bias + COLUMNS)
    value_bias = tl.load(bias + 2 * COLUMNS)
    # A plain sum could become the product's accumulator, which rounds in another way.
    queries = tl.fma(_project(inputs, queries_of, 0, HEADS, PIECE, ROWS), 1.0, query_bias[None, :]) / temperature
    logits = ()
    values = ()
    for turn in tl.static_range(BLOCKS):
        keys = tl.fma(_project(inputs, keys_of, turn, HEADS, PIECE, ROWS), 1.0, key_bias[None, :])
        logits += (tl.sum(queries * keys, 1),)
        values += (_project(inputs, values_of, turn, HEADS, PIECE, ROWS),)
    most = logits[0]
    for turn in tl.static_range(1, BLOCKS):
        most = tl.maximum(most, logits[turn])
    total = tl.zeros((ROWS,), tl.float32)
    attended = tl.zeros((ROWS, PIECE), tl.float32)
    for turn in tl.static_range(BLOCKS):
        weight = tl.exp(logits[turn] - most)
        total += weight
        attended += weight[:, None] * values[turn]
    return attended * (1.0 / total)[:, None] + value_bias[None, :]


@triton.jit
def _matrices(matrix, head, HEADS: tl.constexpr, PIECE: tl.constexpr):
    """The columns of one head of a matrix `[columns, columns]`, in pieces of its rows."""
    inner = tl.arange(0, PIECE)
    found = ()
    for piece in tl.static_range(HEADS):
        at = matrix + (piece * PIECE + inner)[:, None] * (HEADS * PIECE) + (head * PIECE + inner)[None, :]
        found += (tl.load(at),)
    return found


@triton.jit
def _project(inputs, matrices, turn: tl.constexpr, HEADS: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr):
    total = tl.zeros((ROWS, PIECE), tl.float32)
    for piece in tl.static_range(HEADS):
        total = tl.dot(inputs[turn * HEADS + piece], matrices[piece], total, input_precision="ieee")
    return total


@triton.jit
def _feed_forward(
    rows,
    ffn_in,
    ffn_out,
    biases,
    dtype: tl.constexpr,
    FFN: tl.constexpr,
    HEADS: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The two products, without the second bias; `rows` and the result in pieces."""
    inner = tl.arange(0, PIECE)
    chunk = tl.arange(0, _FFN_CHUNK)
    operands = ()
    totals = ()
    for piece in tl.static_range(HEADS):
        operands += (rows[piece].to(dtype),)
        totals += (tl.zeros((ROWS, PIECE), tl.float32),)
    bias = tl.load(biases + chunk)
    for start in range(0, FFN, _FFN_CHUNK):
        unit = start + chunk
        hidden = tl.zeros((ROWS, _FFN_CHUNK), tl.float32)
        for piece in tl.static_range(HEADS):
            matrix = tl.load(ffn_in + (piece * PIECE + inner)[:, None] * FFN + unit[None, :])
            hidden = tl.dot(operands[piece], matrix, hidden, input_precision="ieee")
        hidden = tl.maximum(tl.fma(hidden, 1.0, bias[None, :]), 0.0).to(dtype)
        # The next chunk's, so that nobody waits for it; behind the last there are other vectors.
        bias = tl.load(biases + _FFN_CHUNK + unit)
        sums = ()
        for piece in tl.static_range(HEADS):
            matrix = tl.load(ffn_out + unit[:, None] * (HEADS * PIECE) + (piece * PIECE + inner)[None, :])
            sums += (tl.dot(hidden, matrix, totals[piece], input_precision="ieee"),)
        totals = sums
    return totals


@triton.jit
def _norm(
    rows,
    vectors,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """LayerNorm of rows in pieces; `vectors` are its gain and its shift."""
    inner = tl.arange(0, PIECE)
    total = tl.zeros((ROWS,), tl.float32)
    for piece in tl.static_range(HEADS):
        total += tl.sum(rows[piece], 1)
    mean = total / DIM
    squares = tl.zeros((ROWS,), tl.float32)
    for piece in tl.static_range(HEADS):
        centred = tl.where((inner < HEAD)[None, :], rows[piece] - mean[:, None], 0.0)
        squares += tl.sum(centred * centred, 1)
    scale = 1.0 / tl.sqrt(squares / DIM + 1e-5)
    normal = ()
    for piece in tl.static_range(HEADS):
        gain = tl.load(vectors + piece * PIECE + inner)
        shift = tl.load(vectors + (HEADS + piece) * PIECE + inner)
        normal += ((rows[piece] - mean[:, None]) * scale[:, None] * gain[None, :] + shift[None, :],)
    return normal


@triton.jit
def _squeeze(
    own,
    live,
    squeeze,
    biases,
    BLOCKS: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PIECE: tl.constexpr,
    SQUEEZED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The gate's hidden units of every row's candidate, from what this tile has just stored of all its blocks."""
    unit = tl.arange(0, SQUEEZED)
    inner = tl.arange(0, PIECE)
    bias = tl.load(biases + unit)
    total = tl.zeros((ROWS, SQUEEZED), tl.float32)
    for part in range(BLOCKS):
        for piece in tl.static_range(HEADS):
            row = (part * HEADS + piece) * PIECE + inner
            matrix = tl.load(squeeze + row[:, None] * SQUEEZED + unit[None, :])
            fused = _load_piece(own + part * DIM, live, piece, HEAD, PIECE)
            total = tl.dot(fused, matrix, total, input_precision="ieee")
    return tl.maximum(tl.fma(total, 1.0, bias[None, :]), 0.0)


@triton.jit
def _excite(
    squeezed,
    block,
    excite,
    biases,
    BLOCKS: tl.constexpr,
    HEADS: tl.constexpr,
    PIECE: tl.constexpr,
    SQUEEZED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The gates before their sigmoid, in pieces: every row by its own block's part of the matrix."""
    COLUMNS: tl.constexpr = HEADS * PIECE
    unit = tl.arange(0, SQUEEZED)
    inner = tl.arange(0, PIECE)
    gates = ()
    for piece in tl.static_range(HEADS):
        column = piece * PIECE + inner
        gates += (
            tl.load(biases + block[:, None] * COLUMNS + column[None, :], mask=(block < BLOCKS)[:, None], other=0.0),
        )
    for part in range(BLOCKS):
        sums = ()
        for piece in tl.static_range(HEADS):
            column = piece * PIECE + inner
            matrix = tl.load(excite + (part * SQUEEZED + unit)[:, None] * COLUMNS + column[None, :])
            operand = tl.where((block == part)[:, None], squeezed, 0.0)
            sums += (tl.dot(operand, matrix, gates[piece], input_precision="ieee"),)
        gates = sums
    return gates
