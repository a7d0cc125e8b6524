"""Device code of the input stage."""

# mypy: disable-error-code="assignment, misc"
# Tuples of tensors grow in loops that Triton unrolls.

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import let_kernel_behind_begin, wait_for_kernel_before


@triton.jit
def tokens(
    words,
    x,
    states,
    items,
    table,
    projection,
    vectors,
    first,
    event_tiles,
    events_start,
    event_slots,
    candidates_start,
    candidate_slots,
    event_rows,
    user_stride,
    block_stride,
    row_stride,
    DIM: tl.constexpr,
    BLOCKS: tl.constexpr,
    ITEM_DIM: tl.constexpr,
    HOST: tl.constexpr,
    PROJECTED: tl.constexpr,
    HEADER_WORDS: tl.constexpr,
    SCENARIO_WORD: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    LENGTHS_WORD: tl.constexpr,
    PREFIX_WORD: tl.constexpr,
    USER_START: tl.constexpr,
    CONTEXT_START: tl.constexpr,
    EVENT_WORDS: tl.constexpr,
    CANDIDATE_WORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ITEM_ROWS: tl.constexpr,
    ITEM_FLOATS: tl.constexpr,
    USER_ROWS: tl.constexpr,
    USER_FLOATS: tl.constexpr,
    CONTEXT_ROWS: tl.constexpr,
    CONTEXT_FLOATS: tl.constexpr,
    TIMES: tl.constexpr,
    BUCKETS: tl.constexpr,
    SCENARIOS: tl.constexpr,
    OLDEST: tl.constexpr,
    GAPS: tl.constexpr,
    AGES: tl.constexpr,
    STATE_HEADER: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    UNROLLED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (tiles, chunks of the columns, users): tiles of events of all sequences, then tiles of candidates.

    The words of a tile are asked for before its header has come, so that the two waits are one; they are used as an
    index only where a row turns out to be live. Of events that the state holds, no more than the ages are written.
    """
    tile = tl.program_id(0) + first
    user = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    header = words + user * HEADER_WORDS
    wait_for_kernel_before(DEPENDENT)
    let_kernel_behind_begin(DEPENDENT)
    if tile < event_tiles * BLOCKS:
        block = tile // event_tiles
        start = (tile - block * event_tiles) * ROWS
        length = tl.load(header + LENGTHS_WORD + block)
        slots = start + tl.arange(0, ROWS)
        inside = slots < event_slots
        records = words + events_start + ((user * BLOCKS + block) * event_slots + slots) * EVENT_WORDS
        item = tl.load(records, mask=inside, other=0)
        action = tl.load(records + 1, mask=inside, other=0)
        if (BUCKETS > 0) or (AGES >= 0):
            age = tl.load(records + 2, mask=inside, other=0)
        rows = _words(records + 3, inside, ITEM_ROWS, UNROLLED)
        if (start == 0) & (tl.program_id(1) == 0):
            state = tl.load(states + user)
            if state != 0:
                tl.store(state.to(tl.pointer_type(tl.int32)) + 1 + block, length)
        if GAPS:
            before = tl.load(records - EVENT_WORDS + 2, mask=inside & (slots > 0), other=0)
        fresh = start < length
        if PREFIX_WORD >= 0:
            held = start + ROWS <= tl.load(header + PREFIX_WORD)
            fresh = fresh & (not held)
            if AGES >= 0:
                first_chunk = inside & (slots < length) & held & (tl.program_id(1) == 0)
                _store_ages(tl.load(states + user), block, slots, age, first_chunk, AGES, STATE_HEADER)
        if fresh:
            live = inside & (slots < length)
            seen = live[:, None] & (columns < DIM)[None, :]
            total = tl.load(vectors + columns, mask=columns < DIM, other=0.0)[None, :] + _features(
                records + 3, rows, live, seen, columns, table, vectors + 2 * DIM, ITEM_ROWS, ITEM_FLOATS, DIM, UNROLLED
            )
            total += _row(table, tl.where(live, action, 0), seen, columns, DIM)
            place = slots + 1 if OLDEST else length - slots
            total += _row(table, POSITIONS + tl.where(live, place, 0), seen, columns, DIM)
            if BUCKETS > 0:
                seconds = tl.where(slots > 0, before - age, 0) if GAPS else age
                bucket = _time_bucket(tl.where(live, seconds, 0), BUCKETS)
                total += _row(table, TIMES + bucket, seen, columns, DIM)
            vectors_at = records + (EVENT_WORDS - ITEM_DIM)
            total += _items(
                items, vectors_at, item, live, seen, columns, projection, ITEM_DIM, HOST, PROJECTED, ROWS, CHUNK, DIM
            )
            out = x + user * user_stride + block * block_stride + slots * row_stride
            tl.store(out[:, None] + columns[None, :], total.to(x.dtype.element_ty), mask=seen)
            if AGES >= 0:
                first_chunk = live & (tl.program_id(1) == 0)
                _store_ages(tl.load(states + user), block, slots, age, first_chunk, AGES, STATE_HEADER)
    else:
        start = (tile - event_tiles * BLOCKS) * ROWS
        count = tl.load(header + COUNT_WORD)
        slots = start + tl.arange(0, ROWS)
        inside = slots < candidate_slots
        records = words + candidates_start + (user * candidate_slots + slots) * CANDIDATE_WORDS
        item = tl.load(records, mask=inside, other=0)
        rows = _words(records + 1, inside, ITEM_ROWS, UNROLLED)
        if start < count:
            live = inside & (slots < count)
            within = columns < DIM
            seen = live[:, None] & within[None, :]
            theirs = _shared(
                header,
                table,
                vectors + (2 + ITEM_FLOATS) * DIM,
                columns,
                USER_START,
                USER_ROWS,
                USER_FLOATS,
                CONTEXT_START,
                CONTEXT_ROWS,
                CONTEXT_FLOATS,
                SCENARIO_WORD,
                SCENARIOS,
                DIM,
            )
            total = (tl.load(vectors + DIM + columns, mask=within, other=0.0) + theirs)[None, :] + _features(
                records + 1, rows, live, seen, columns, table, vectors + 2 * DIM, ITEM_ROWS, ITEM_FLOATS, DIM, UNROLLED
            )
            vectors_at = records + (CANDIDATE_WORDS - ITEM_DIM)
            total += _items(
                items, vectors_at, item, live, seen, columns, projection, ITEM_DIM, HOST, PROJECTED, ROWS, CHUNK, DIM
            )
            token = total.to(x.dtype.element_ty)
            out = x + user * user_stride + (event_rows + slots) * row_stride
            for block in tl.static_range(BLOCKS):
                tl.store((out + block * block_stride)[:, None] + columns[None, :], token, mask=seen)


@triton.jit
def _store_ages(state, block, slots, age, live, AGES: tl.constexpr, STATE_HEADER: tl.constexpr):
    if state != 0:
        capacity = tl.load(state.to(tl.pointer_type(tl.int32)))
        ages = (state + STATE_HEADER + AGES * capacity.to(tl.int64)).to(tl.pointer_type(tl.int32))
        tl.store(ages + block * capacity + slots, age, mask=live)


@triton.jit
def _words(at, inside, STARTS: tl.constexpr, UNROLLED: tl.constexpr):
    """The integer words of a tile's records, asked for early; none where they are too many to keep."""
    rows = ()
    if len(STARTS) <= UNROLLED:
        for word in tl.static_range(len(STARTS)):
            rows += (tl.load(at + word, mask=inside, other=0),)
    return rows


@triton.jit
def _features(
    at,
    rows,
    live,
    seen,
    columns,
    table,
    vectors,
    STARTS: tl.constexpr,
    FLOATS: tl.constexpr,
    DIM: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    """The feature rows of some records as vectors: categories, then floats."""
    total = tl.zeros(seen.shape, tl.float32)
    for word in tl.static_range(len(STARTS)):
        index = rows[word] if len(STARTS) <= UNROLLED else tl.load(at + word, mask=live, other=0)
        total += _row(table, STARTS[word] + tl.where(live, index, 0), seen, columns, DIM)
    dense = at + len(STARTS)
    for word in range(FLOATS):
        value = tl.load(dense + word, mask=live, other=0).to(tl.float32, bitcast=True)
        vector = tl.load(vectors + word * DIM + columns, mask=columns < DIM, other=0.0)
        total += value[:, None] * vector[None, :]
    return total


@triton.jit
def _row(table, index, seen, columns, DIM: tl.constexpr):
    """Rows `index` of a table, as far as `seen`, in fp32."""
    at = table + index.to(tl.int64)[:, None] * DIM + columns[None, :]
    return tl.load(at, mask=seen, other=0.0).to(tl.float32)


@triton.jit
def _shared(
    header,
    table,
    vectors,
    columns,
    USER_START: tl.constexpr,
    USER_ROWS: tl.constexpr,
    USER_FLOATS: tl.constexpr,
    CONTEXT_START: tl.constexpr,
    CONTEXT_ROWS: tl.constexpr,
    CONTEXT_FLOATS: tl.constexpr,
    SCENARIO_WORD: tl.constexpr,
    SCENARIOS: tl.constexpr,
    DIM: tl.constexpr,
):
    """What all candidates of a user get: user row, context row, scenario."""
    total = _header_row(header + USER_START, table, vectors, columns, USER_ROWS, USER_FLOATS, DIM)
    total += _header_row(
        header + CONTEXT_START, table, vectors + USER_FLOATS * DIM, columns, CONTEXT_ROWS, CONTEXT_FLOATS, DIM
    )
    if SCENARIOS >= 0:
        row = (SCENARIOS + tl.load(header + SCENARIO_WORD)).to(tl.int64)
        total += tl.load(table + row * DIM + columns, mask=columns < DIM, other=0.0).to(tl.float32)
    return total


@triton.jit
def _header_row(at, table, vectors, columns, STARTS: tl.constexpr, FLOATS: tl.constexpr, DIM: tl.constexpr):
    total = tl.zeros(columns.shape, tl.float32)
    for word in tl.static_range(len(STARTS)):
        row = (STARTS[word] + tl.load(at + word)).to(tl.int64)
        total += tl.load(table + row * DIM + columns, mask=columns < DIM, other=0.0).to(tl.float32)
    for word in range(FLOATS):
        value = tl.load(at + len(STARTS) + word).to(tl.float32, bitcast=True)
        total += value * tl.load(vectors + word * DIM + columns, mask=columns < DIM, other=0.0)
    return total


@triton.jit
def _items(
    items,
    vectors_at,
    item,
    live,
    seen,
    columns,
    projection,
    ITEM_DIM: tl.constexpr,
    HOST: tl.constexpr,
    PROJECTED: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    DIM: tl.constexpr,
):
    """Item vectors of a tile, projected where their dim is not the model's."""
    if PROJECTED:
        total = tl.zeros((ROWS, CHUNK), tl.float32)
        for start in range(0, ITEM_DIM, 32):
            inner = start + tl.arange(0, 32)
            known = live[:, None] & (inner < ITEM_DIM)[None, :]
            found = _item_vectors(items, vectors_at, item, live, known, inner, ITEM_DIM, HOST)
            of = (inner < ITEM_DIM)[:, None] & (columns < DIM)[None, :]
            matrix = tl.load(projection + inner[:, None] * DIM + columns[None, :], mask=of, other=0.0)
            total = tl.dot(found.to(projection.dtype.element_ty), matrix, total, input_precision="ieee")
    else:
        total = _item_vectors(items, vectors_at, item, live, seen, columns, ITEM_DIM, HOST)
    return total


@triton.jit
def _item_vectors(items, vectors_at, item, live, seen, columns, ITEM_DIM: tl.constexpr, HOST: tl.constexpr):
    if HOST:
        found = tl.load(vectors_at[:, None] + columns[None, :], mask=seen, other=0).to(tl.float32, bitcast=True)
    else:
        found = _row(items, tl.where(live, item, 0), seen, columns, ITEM_DIM)
    return found


@triton.jit
def _time_bucket(age, BUCKETS: tl.constexpr):
    """How many of 1, 3, 7, 15, ... are no larger, at most BUCKETS - 1: the floor of log2(1 + age), exactly."""
    bucket = tl.zeros(age.shape, tl.int32)
    for power in tl.static_range(1, 32):
        if power < BUCKETS:
            bucket += (age >= ((1 << power) - 1)).to(tl.int32)
    return bucket
