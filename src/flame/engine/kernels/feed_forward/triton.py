"""Device code of the feed-forward half with the next projection; see the package for what it computes.

A row of activations is a tuple of pieces, each a power of two wide, so that a dim of 96 is products of 64 and 32 and
not one of 128. `SIZES` are their widths, `STARTS` their first columns and, last, the columns of all.
"""

# Triton knows no starred expressions, and tuples grow while loops are unrolled.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import wait_for_kernel_before


@triton.jit
def load_row(pointer, starts, SIZES: tl.constexpr, STARTS: tl.constexpr, DIM: tl.constexpr):
    """Pieces of rows that start at the elements `starts`, zero beyond the dim."""
    row = ()
    for index in tl.static_range(len(SIZES)):
        columns = STARTS[index] + tl.arange(0, SIZES[index])
        real = (columns < DIM)[None, :]
        row = row + (tl.load(pointer + starts[:, None] + columns[None, :], mask=real, other=0.0),)
    return row


@triton.jit
def store_row(pointer, starts, row, SIZES: tl.constexpr, STARTS: tl.constexpr, DIM: tl.constexpr):
    """Stores pieces of rows up to the dim."""
    for index in tl.static_range(len(SIZES)):
        columns = STARTS[index] + tl.arange(0, SIZES[index])
        tl.store(pointer + starts[:, None] + columns[None, :], row[index], mask=(columns < DIM)[None, :])


@triton.jit
def cast_row(row, dtype: tl.constexpr, SIZES: tl.constexpr):
    """The pieces in another type."""
    cast = ()
    for index in tl.static_range(len(SIZES)):
        cast = cast + (row[index].to(dtype),)
    return cast


@triton.jit
def add_row(left, right, SIZES: tl.constexpr):
    """Sum of two rows in fp32."""
    sums = ()
    for index in tl.static_range(len(SIZES)):
        sums = sums + (left[index].to(tl.float32) + right[index].to(tl.float32),)
    return sums


@triton.jit
def times_matrix(row, matrix, columns, STRIDE: tl.constexpr, SIZES: tl.constexpr, STARTS: tl.constexpr):
    """Product of rows with the given columns of a matrix whose rows are `STRIDE` long."""
    first = matrix + tl.arange(0, SIZES[0])[:, None] * STRIDE + columns[None, :]
    product = tl.dot(row[0], tl.load(first), input_precision="ieee")
    for index in tl.static_range(1, len(SIZES)):
        inputs = STARTS[index] + tl.arange(0, SIZES[index])
        weights = tl.load(matrix + inputs[:, None] * STRIDE + columns[None, :])
        product = tl.dot(row[index], weights, product, input_precision="ieee")
    return product


@triton.jit
def feed_forward(
    row,
    weights_in,
    bias_in,
    weights_out,
    bias_out,
    FFN: tl.constexpr,
    CHUNK: tl.constexpr,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Both products with the ReLU between them; `CHUNK` hidden units at a time, none of them ever in memory."""
    PADDED: tl.constexpr = STARTS[len(SIZES)]
    sums = ()
    for index in tl.static_range(len(SIZES)):
        sums = sums + (tl.full((ROWS, SIZES[index]), 0.0, tl.float32),)
    for start in range(0, FFN, CHUNK):
        units = start + tl.arange(0, CHUNK)
        hidden = times_matrix(row, weights_in, units, FFN, SIZES, STARTS)
        hidden = tl.maximum(hidden + tl.load(bias_in + units)[None, :], 0.0).to(row[0].dtype)
        more = ()
        for index in tl.static_range(len(SIZES)):
            columns = STARTS[index] + tl.arange(0, SIZES[index])
            weights = tl.load(weights_out + units[:, None] * PADDED + columns[None, :])
            more = more + (tl.dot(hidden, weights, sums[index], input_precision="ieee"),)
        sums = more
    result = ()
    for index in tl.static_range(len(SIZES)):
        columns = STARTS[index] + tl.arange(0, SIZES[index])
        result = result + (sums[index] + tl.load(bias_out + columns)[None, :],)
    return result


@triton.jit
def layer_norm(row, gain, shift, EPSILON: tl.constexpr, SIZES: tl.constexpr, STARTS: tl.constexpr, DIM: tl.constexpr):
    """LayerNorm of rows that are zero beyond the dim."""
    mean = tl.sum(row[0], 1)
    for index in tl.static_range(1, len(SIZES)):
        mean += tl.sum(row[index], 1)
    mean = mean / DIM
    centred = ()
    for index in tl.static_range(len(SIZES)):
        difference = row[index] - mean[:, None]
        if STARTS[len(SIZES)] > DIM:
            columns = STARTS[index] + tl.arange(0, SIZES[index])
            difference = tl.where((columns < DIM)[None, :], difference, 0.0)
        centred = centred + (difference,)
    variance = tl.sum(centred[0] * centred[0], 1)
    for index in tl.static_range(1, len(SIZES)):
        variance += tl.sum(centred[index] * centred[index], 1)
    rate = tl.rsqrt(variance / DIM + EPSILON)[:, None]
    result = ()
    for index in tl.static_range(len(SIZES)):
        columns = STARTS[index] + tl.arange(0, SIZES[index])
        scaled = centred[index] * rate * tl.load(gain + columns)[None, :]
        result = result + (scaled + tl.load(shift + columns)[None, :],)
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
    BODY: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Queries into `queries`; keys and values of events into the state, of candidates into `own`."""
    PADDED: tl.constexpr = STARTS[len(SIZES)]
    HEADS: tl.constexpr = DIM // HEAD_DIM
    dtype = queries.dtype.element_ty
    block = user_block % BLOCKS
    plane = capacity.to(tl.int64) * HEAD_DIM
    past = tl.multiple_of((address + BODY).to(tl.pointer_type(dtype)), 16)
    slices = user_block.to(tl.int64)
    query_row = queries + (slices * (events + candidates) + rows)[:, None] * DIM
    own_row = own + (slices * candidates + rows - events)[:, None] * (2 * DIM)
    for part in range(first_part, 3):
        for index in tl.static_range(len(SIZES)):
            places = STARTS[index] + tl.arange(0, SIZES[index])
            real = (places < DIM)[None, :]
            columns = part * PADDED + places
            out = times_matrix(row, weights, columns, 3 * PADDED, SIZES, STARTS)
            out = (out + tl.load(bias + columns)[None, :]).to(dtype)
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
def place_of(
    states,
    words,
    first_row,
    user,
    block,
    events,
    HEADER: tl.constexpr,
    COUNT: tl.constexpr,
    PREFIX: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Of a tile: address and capacity of its user's state, whether its rows are candidates, whether one is live.

    None is where the state holds them all.
    """
    address = tl.load(states + user)
    state_words = address.to(tl.pointer_type(tl.int32))
    capacity = tl.multiple_of(tl.load(state_words), 128)
    is_candidate = first_row >= events
    live = tl.load(state_words + 1 + block)
    base = 0
    if is_candidate:
        live = tl.load(words + user * HEADER + COUNT)
        base = events
    if PREFIX >= 0:
        held = tl.load(words + user * HEADER + PREFIX)
        live = tl.where(is_candidate | (first_row + ROWS > held), live, 0)
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
    PREFIX: tl.constexpr,
    BODY: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    PADDED: tl.constexpr = STARTS[len(SIZES)]
    first_row = (tl.program_id(0) + first_tile) * ROWS
    user_block = tl.program_id(1)
    block = user_block % BLOCKS
    wait_for_kernel_before(DEPENDENT)
    address, capacity, is_candidate, is_live = place_of(
        states, words, first_row, user_block // BLOCKS, block, events, HEADER, COUNT, PREFIX, ROWS
    )
    if not is_live:
        return
    rows = first_row + tl.arange(0, ROWS)
    starts = (user_block.to(tl.int64) * (events + candidates) + rows) * DIM
    row = load_row(x, starts, SIZES, STARTS, DIM)
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
        BODY,
        LAYERS,
        BLOCKS,
        HEAD_DIM,
        SIZES,
        STARTS,
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
    PREFIX: tl.constexpr,
    BODY: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    FFN: tl.constexpr,
    EPSILON: tl.constexpr,
    NORM_LAST: tl.constexpr,
    PROJECT: tl.constexpr,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    PADDED: tl.constexpr = STARTS[len(SIZES)]
    dtype: tl.constexpr = x.dtype.element_ty
    first_row = (tl.program_id(0) + first_tile) * ROWS
    user_block = tl.program_id(1)
    block = user_block % BLOCKS
    wait_for_kernel_before(DEPENDENT)
    address, capacity, is_candidate, is_live = place_of(
        states, words, first_row, user_block // BLOCKS, block, events, HEADER, COUNT, PREFIX, ROWS
    )
    if not is_live:
        return
    rows = first_row + tl.arange(0, ROWS)
    starts = (user_block.to(tl.int64) * (events + candidates) + rows) * DIM
    row = load_row(inputs, starts, SIZES, STARTS, DIM)
    branch = feed_forward(
        row,
        weights_in + block * (FFN * PADDED),
        bias_in + block * FFN,
        weights_out + block * (FFN * PADDED),
        bias_out + block * PADDED,
        FFN,
        CHUNK,
        SIZES,
        STARTS,
        ROWS,
    )
    gain += block * PADDED
    shift += block * PADDED
    if NORM_LAST:
        residual = load_row(x, starts, SIZES, STARTS, DIM)
        branch = add_row(residual, branch, SIZES)
        following = layer_norm(branch, gain, shift, EPSILON, SIZES, STARTS, DIM)
    else:
        normal = layer_norm(branch, gain, shift, EPSILON, SIZES, STARTS, DIM)
        following = add_row(row, normal, SIZES)
    row = cast_row(following, dtype, SIZES)
    store_row(x, starts, row, SIZES, STARTS, DIM)
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
            BODY,
            LAYERS,
            BLOCKS,
            HEAD_DIM,
            SIZES,
            STARTS,
            DIM,
        )
