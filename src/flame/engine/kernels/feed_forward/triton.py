"""Device code of the feed-forward half with the next projection; see the package for what it computes.

A row of activations is a tuple of pieces, each a power of two wide, so that a dim of 96 is three products of 32 and
not one of 128.
"""

# Triton knows no starred expressions, and tuples grow while loops are unrolled.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_row(pointer, offsets, columns, PIECES: tl.constexpr, PIECE: tl.constexpr, DIM: tl.constexpr):
    """Pieces of rows, zero beyond the dim."""
    row = ()
    for index in tl.static_range(PIECES):
        real = columns + index * PIECE < DIM
        row = row + (tl.load(pointer + offsets + index * PIECE, mask=real[None, :], other=0.0),)
    return row


@triton.jit
def store_row(pointer, offsets, columns, row, PIECES: tl.constexpr, PIECE: tl.constexpr, DIM: tl.constexpr):
    """Stores pieces of rows up to the dim."""
    for index in tl.static_range(PIECES):
        real = columns + index * PIECE < DIM
        tl.store(pointer + offsets + index * PIECE, row[index], mask=real[None, :])


@triton.jit
def cast_row(row, dtype: tl.constexpr, PIECES: tl.constexpr):
    """The pieces in another type."""
    cast = ()
    for index in tl.static_range(PIECES):
        cast = cast + (row[index].to(dtype),)
    return cast


@triton.jit
def add_row(left, right, PIECES: tl.constexpr):
    """Sum of two rows in fp32."""
    sums = ()
    for index in tl.static_range(PIECES):
        sums = sums + (left[index].to(tl.float32) + right[index].to(tl.float32),)
    return sums


@triton.jit
def times_matrix(row, weights, STRIDE: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    """Product of rows with a matrix; `weights` `[piece, columns]` points at the rows of the first piece."""
    product = tl.dot(row[0], tl.load(weights), input_precision="ieee")
    for index in tl.static_range(1, PIECES):
        product = tl.dot(row[index], tl.load(weights + index * PIECE * STRIDE), product, input_precision="ieee")
    return product


@triton.jit
def feed_forward(
    row,
    weights_in,
    bias_in,
    weights_out,
    bias_out,
    columns,
    FFN: tl.constexpr,
    CHUNK: tl.constexpr,
    PIECES: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Both products with the ReLU between them; `CHUNK` hidden units at a time, none of them ever in memory."""
    PADDED: tl.constexpr = PIECES * PIECE
    inputs = tl.arange(0, PIECE)
    units = tl.arange(0, CHUNK)
    sums = ()
    for _ in tl.static_range(PIECES):
        sums = sums + (tl.zeros((ROWS, PIECE), tl.float32),)
    for start in range(0, FFN, CHUNK):
        hidden = times_matrix(row, weights_in + inputs[:, None] * FFN + start + units[None, :], FFN, PIECES, PIECE)
        hidden = tl.maximum(hidden + tl.load(bias_in + start + units)[None, :], 0.0).to(row[0].dtype)
        more = ()
        for index in tl.static_range(PIECES):
            weights = tl.load(weights_out + (start + units)[:, None] * PADDED + columns[None, :] + index * PIECE)
            more = more + (tl.dot(hidden, weights, sums[index], input_precision="ieee"),)
        sums = more
    result = ()
    for index in tl.static_range(PIECES):
        result = result + (sums[index] + tl.load(bias_out + columns + index * PIECE)[None, :],)
    return result


@triton.jit
def layer_norm(
    row, gain, shift, columns, EPSILON: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr, DIM: tl.constexpr
):
    """LayerNorm of rows that are zero beyond the dim."""
    mean = tl.sum(row[0], 1)
    for index in tl.static_range(1, PIECES):
        mean += tl.sum(row[index], 1)
    mean = mean / DIM
    centred = ()
    for index in tl.static_range(PIECES):
        difference = row[index] - mean[:, None]
        if DIM < PIECES * PIECE:
            difference = tl.where((columns + index * PIECE < DIM)[None, :], difference, 0.0)
        centred = centred + (difference,)
    variance = tl.sum(centred[0] * centred[0], 1)
    for index in tl.static_range(1, PIECES):
        variance += tl.sum(centred[index] * centred[index], 1)
    rate = tl.rsqrt(variance / DIM + EPSILON)[:, None]
    result = ()
    for index in tl.static_range(PIECES):
        places = columns + index * PIECE
        result = result + (centred[index] * rate * tl.load(gain + places)[None, :] + tl.load(shift + places)[None, :],)
    return result


@triton.jit
def project(
    row,
    weights,
    bias,
    queries,
    own,
    address,
    capacity,
    rows,
    is_candidate,
    first_part,
    events,
    candidates,
    layer,
    user_block,
    columns,
    BODY: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PIECES: tl.constexpr,
    PIECE: tl.constexpr,
    DIM: tl.constexpr,
):
    """Queries into `queries`; keys and values of events into the state, of candidates into `own`."""
    PADDED: tl.constexpr = PIECES * PIECE
    HEADS: tl.constexpr = DIM // HEAD_DIM
    dtype = queries.dtype.element_ty
    block = user_block % BLOCKS
    inputs = tl.arange(0, PIECE)
    plane = capacity.to(tl.int64) * HEAD_DIM
    past = tl.multiple_of((address + BODY).to(tl.pointer_type(dtype)), 16)
    slices = user_block.to(tl.int64)
    query_row = queries + (slices * (events + candidates) + rows)[:, None] * DIM
    own_row = own + (slices * candidates + rows - events)[:, None] * (2 * DIM)
    for part in range(first_part, 3):
        for index in tl.static_range(PIECES):
            places = columns + index * PIECE
            real = (places < DIM)[None, :]
            start = part * PADDED + index * PIECE
            out = times_matrix(
                row, weights + inputs[:, None] * (3 * PADDED) + start + columns[None, :], 3 * PADDED, PIECES, PIECE
            )
            out = (out + tl.load(bias + start + columns)[None, :]).to(dtype)
            if part == 0:
                tl.store(query_row + places[None, :], out, mask=real)
            elif is_candidate:
                tl.store(own_row + (part - 1) * DIM + places[None, :], out, mask=real)
            else:
                head = (((part - 1) * LAYERS + layer) * BLOCKS + block) * HEADS + places // HEAD_DIM
                target = past + head.to(tl.int64)[None, :] * plane
                target += rows[:, None] * HEAD_DIM + (places % HEAD_DIM)[None, :]
                tl.store(target, out, mask=real)


@triton.jit
def place_of(states, words, first_row, user, block, events, HEADER: tl.constexpr, COUNT: tl.constexpr):
    """Of a tile: address and capacity of its user's state, whether its rows are candidates, whether one is live."""
    address = tl.load(states + user)
    state_words = address.to(tl.pointer_type(tl.int32))
    capacity = tl.multiple_of(tl.load(state_words), 128)
    is_candidate = first_row >= events
    live = tl.load(state_words + 1 + block)
    base = 0
    if is_candidate:
        live = tl.load(words + user * HEADER + COUNT)
        base = events
    return address, capacity, is_candidate, first_row - base < live


@triton.jit
def projection_kernel(
    x,
    weights,
    bias,
    queries,
    own,
    states,
    words,
    events,
    candidates,
    first_tile,
    layer,
    first_part,
    HEADER: tl.constexpr,
    COUNT: tl.constexpr,
    BODY: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PIECES: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
):
    PADDED: tl.constexpr = PIECES * PIECE
    first_row = (tl.program_id(0) + first_tile) * ROWS
    user_block = tl.program_id(1)
    block = user_block % BLOCKS
    address, capacity, is_candidate, is_live = place_of(
        states, words, first_row, user_block // BLOCKS, block, events, HEADER, COUNT
    )
    if not is_live:
        return
    rows = first_row + tl.arange(0, ROWS)
    columns = tl.arange(0, PIECE)
    offsets = (user_block.to(tl.int64) * (events + candidates) + rows)[:, None] * DIM + columns[None, :]
    row = load_row(x, offsets, columns, PIECES, PIECE, DIM)
    part = 0
    if not is_candidate:
        part = first_part
    project(
        row,
        weights + block * (3 * PADDED * PADDED),
        bias + block * (3 * PADDED),
        queries,
        own,
        address,
        capacity,
        rows,
        is_candidate,
        part,
        events,
        candidates,
        layer,
        user_block,
        columns,
        BODY,
        LAYERS,
        BLOCKS,
        HEAD_DIM,
        PIECES,
        PIECE,
        DIM,
    )


@triton.jit
def feed_forward_kernel(
    inputs,
    x,
    weights_in,
    bias_in,
    weights_out,
    bias_out,
    gain,
    shift,
    weights,
    bias,
    queries,
    own,
    states,
    words,
    events,
    candidates,
    first_tile,
    layer,
    first_part,
    HEADER: tl.constexpr,
    COUNT: tl.constexpr,
    BODY: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    FFN: tl.constexpr,
    EPSILON: tl.constexpr,
    NORM_LAST: tl.constexpr,
    PROJECT: tl.constexpr,
    PIECES: tl.constexpr,
    PIECE: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
):
    PADDED: tl.constexpr = PIECES * PIECE
    dtype: tl.constexpr = x.dtype.element_ty
    first_row = (tl.program_id(0) + first_tile) * ROWS
    user_block = tl.program_id(1)
    block = user_block % BLOCKS
    address, capacity, is_candidate, is_live = place_of(
        states, words, first_row, user_block // BLOCKS, block, events, HEADER, COUNT
    )
    if not is_live:
        return
    rows = first_row + tl.arange(0, ROWS)
    columns = tl.arange(0, PIECE)
    offsets = (user_block.to(tl.int64) * (events + candidates) + rows)[:, None] * DIM + columns[None, :]
    row = load_row(inputs, offsets, columns, PIECES, PIECE, DIM)
    branch = feed_forward(
        row,
        weights_in + block * (FFN * PADDED),
        bias_in + block * FFN,
        weights_out + block * (FFN * PADDED),
        bias_out + block * PADDED,
        columns,
        FFN,
        CHUNK,
        PIECES,
        PIECE,
        ROWS,
    )
    gain += block * PADDED
    shift += block * PADDED
    if NORM_LAST:
        residual = load_row(x, offsets, columns, PIECES, PIECE, DIM)
        branch = add_row(residual, branch, PIECES)
        following = layer_norm(branch, gain, shift, columns, EPSILON, PIECES, PIECE, DIM)
    else:
        normal = layer_norm(branch, gain, shift, columns, EPSILON, PIECES, PIECE, DIM)
        following = add_row(row, normal, PIECES)
    row = cast_row(following, dtype, PIECES)
    store_row(x, offsets, columns, row, PIECES, PIECE, DIM)
    if PROJECT:
        part = 0
        if not is_candidate:
            part = first_part
        project(
            row,
            weights + block * (3 * PADDED * PADDED),
            bias + block * (3 * PADDED),
            queries,
            own,
            address,
            capacity,
            rows,
            is_candidate,
            part,
            events,
            candidates,
            layer,
            user_block,
            columns,
            BODY,
            LAYERS,
            BLOCKS,
            HEAD_DIM,
            PIECES,
            PIECE,
            DIM,
        )
