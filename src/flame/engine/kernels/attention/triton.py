"""Device code of softmax attention against a state; see the package for what it computes."""

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import wait_for_kernel_before


@triton.jit
def time_bucket(seconds, BUCKETS: tl.constexpr):
    """min(floor(log2(1 + seconds)), BUCKETS - 1), exactly: below the top bit a zero is made, so nothing rounds up."""
    count = seconds.to(tl.uint32) + 1
    exact = (count ^ (count & (count >> 1))).to(tl.float32)
    return tl.minimum((exact.to(tl.int32, bitcast=True) >> 23) - 127, BUCKETS - 1)


@triton.jit
def relative_bias(positions, times, distance, age, REACH: tl.constexpr, BUCKETS: tl.constexpr):
    """Sum of the tables' entries of one block and head at the given distances in slots and seconds."""
    place = tl.minimum(tl.maximum(distance, -REACH), REACH) + REACH
    return tl.load(positions + place) + tl.load(times + time_bucket(age, BUCKETS))


@triton.jit
def attention_kernel(
    queries,
    own,
    x,
    out,
    states,
    words,
    scales,
    positions,
    times,
    scenario_scales,
    events,
    candidates,
    first_tile,
    layer,
    HEADER: tl.constexpr,
    SCENARIO: tl.constexpr,
    COUNT: tl.constexpr,
    PREFIX: tl.constexpr,
    BODY: tl.constexpr,
    AGES: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    SCENARIOS: tl.constexpr,
    CAUSAL: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    REACH: tl.constexpr,
    BUCKETS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    DIM: tl.constexpr = HEADS * HEAD_DIM
    first_row = (tl.program_id(0) + first_tile) * ROWS
    head = tl.program_id(1)
    user = tl.program_id(2) // BLOCKS
    block = tl.program_id(2) % BLOCKS
    dtype = queries.dtype.element_ty
    rows = first_row + tl.arange(0, ROWS)
    columns = tl.arange(0, PADDED)
    real = columns < HEAD_DIM

    wait_for_kernel_before(DEPENDENT)
    address = tl.load(states + user)
    state_words = address.to(tl.pointer_type(tl.int32))
    capacity = tl.multiple_of(tl.load(state_words), 128)
    length = tl.load(state_words + 1 + block)
    is_candidate = first_row >= events
    live = length
    base = 0
    if is_candidate:
        live = tl.load(words + user * HEADER + COUNT)
        base = events
    if PREFIX >= 0:
        held = tl.load(words + user * HEADER + PREFIX)
        live = tl.where(is_candidate | (first_row + ROWS > held), live, 0)
    if first_row - base >= live:
        return

    scenario = tl.load(words + user * HEADER + SCENARIO)
    scale = tl.load(scales + block * SCENARIOS + scenario)
    slice_rows = tl.program_id(2).to(tl.int64) * (events + candidates)
    offsets = (slice_rows + rows)[:, None] * DIM + head * HEAD_DIM + columns[None, :]
    asking = rows - base < live
    q = tl.load(queries + offsets, mask=asking[:, None] & real[None, :], other=0.0)

    past = tl.multiple_of((address + BODY).to(tl.pointer_type(dtype)), 16)
    plane = capacity.to(tl.int64) * HEAD_DIM
    keys = past + ((layer * BLOCKS + block) * HEADS + head) * plane
    values = past + (((LAYERS + layer) * BLOCKS + block) * HEADS + head) * plane
    if BIAS:
        ages = (address + BODY + AGES * capacity.to(tl.int64)).to(tl.pointer_type(tl.int32)) + block * capacity
        positions += (block * HEADS + head) * (2 * REACH + 1)
        times += (block * HEADS + head) * BUCKETS
        factor = tl.load(scenario_scales + (block * HEADS + head) * SCENARIOS + scenario)
        query_age = tl.zeros((ROWS,), tl.int32)
        query_slot = tl.zeros((ROWS,), tl.int32) + length
        if not is_candidate:
            query_age = tl.load(ages + rows, mask=rows < length, other=0)
            query_slot = rows

    end = length
    whole = length // KEYS * KEYS
    if CAUSAL:
        end = tl.where(is_candidate, length, tl.minimum(length, first_row + ROWS))
        whole = tl.where(is_candidate, whole, tl.minimum(length, first_row) // KEYS * KEYS)

    most = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, PADDED), tl.float32)
    for start in range(0, whole, KEYS):
        slots = start + tl.arange(0, KEYS)
        k = tl.load(keys + slots[None, :] * HEAD_DIM + columns[:, None], mask=real[:, None], other=0.0)
        v = tl.load(values + slots[:, None] * HEAD_DIM + columns[None, :], mask=real[None, :], other=0.0)
        products = tl.dot(q, k, input_precision="ieee")
        if BIAS:
            age = tl.load(ages + slots)
            distance = slots[None, :] - query_slot[:, None]
            apart = tl.abs(query_age[:, None] - age[None, :])
            products += factor * relative_bias(positions, times, distance, apart, REACH, BUCKETS)
        highest = tl.maximum(most, tl.max(products, 1))
        weights = tl.exp2(products * scale - (highest * scale)[:, None])
        shrink = tl.exp2((most - highest) * scale)
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(dtype), v, sums * shrink[:, None], input_precision="ieee")
        most = highest
    for start in range(whole, end, KEYS):
        slots = start + tl.arange(0, KEYS)
        exists = slots < length
        k = tl.load(keys + slots[None, :] * HEAD_DIM + columns[:, None], mask=real[:, None], other=0.0)
        v = tl.load(
            values + slots[:, None] * HEAD_DIM + columns[None, :], mask=exists[:, None] & real[None, :], other=0.0
        )
        products = tl.dot(q, k, input_precision="ieee")
        if BIAS:
            age = tl.load(ages + slots, mask=exists, other=0)
            distance = slots[None, :] - query_slot[:, None]
            apart = tl.abs(query_age[:, None] - age[None, :])
            products += factor * relative_bias(positions, times, distance, apart, REACH, BUCKETS)
        seen = exists[None, :]
        if CAUSAL:
            seen = seen & (is_candidate | (slots[None, :] <= rows[:, None]))
        products = tl.where(seen, products, float("-inf"))
        highest = tl.maximum(most, tl.max(products, 1))
        weights = tl.exp2(products * scale - (highest * scale)[:, None])
        shrink = tl.exp2((most - highest) * scale)
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(dtype), v, sums * shrink[:, None], input_precision="ieee")
        most = highest

    if is_candidate:
        own_rows = tl.program_id(2).to(tl.int64) * candidates + rows - events
        own_offsets = own_rows[:, None] * (2 * DIM) + head * HEAD_DIM + columns[None, :]
        k = tl.load(own + own_offsets, mask=real[None, :], other=0.0)
        v = tl.load(own + own_offsets + DIM, mask=real[None, :], other=0.0)
        product = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)
        if BIAS:
            product += factor * (tl.load(positions + REACH) + tl.load(times))
        highest = tl.maximum(most, product)
        weight = tl.exp2((product - highest) * scale)
        shrink = tl.exp2((most - highest) * scale)
        total = total * shrink + weight
        sums = sums * shrink[:, None] + weight[:, None] * v.to(tl.float32)

    result = sums / total[:, None]
    if RESIDUAL:
        result += tl.load(x + offsets, mask=real[None, :], other=0.0).to(tl.float32)
    tl.store(out + offsets, result.to(dtype), mask=real[None, :])
