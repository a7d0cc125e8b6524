"""Device code of experts, gates and their towers."""

# mypy: disable-error-code="assignment, misc"
# Tuples of tensors grow in loops that Triton unrolls.

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import let_kernel_behind_begin, wait_for_kernel_before
from flame.engine.kernels.towers.triton import task_activation, tower_logit


@triton.jit
def experts(
    words,
    wide,
    first,
    second,
    gates,
    vectors,
    outputs,
    shares,
    user_stride,
    row_stride,
    room,
    INPUTS: tl.constexpr,
    INPUTS_PADDED: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr,
    DIM: tl.constexpr,
    TASKS: tl.constexpr,
    HEADER_WORDS: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    RESIDENT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (experts and then the gates, tiles of candidates, users).

    A chunk of hidden units gives a sum of its own, and these are added one after the other.
    """
    place = tl.program_id(0)
    user = tl.program_id(2).to(tl.int64)
    start = tl.program_id(1) * TILE
    count = tl.load(words + user * HEADER_WORDS + COUNT_WORD)
    candidate = start + tl.arange(0, TILE)
    at = wide + user * user_stride + candidate * row_stride
    row = user * room + candidate
    wait_for_kernel_before(DEPENDENT)
    let_kernel_behind_begin(DEPENDENT)
    if start >= count:
        return
    live = candidate < count
    pieces = _pieces(at, live, INPUTS, INPUTS_PADDED, STEP, RESIDENT)
    if place < EXPERTS:
        output = tl.arange(0, DIM)
        total = tl.zeros((TILE, DIM), tl.float32)
        matrix = first + place * (INPUTS_PADDED * HIDDEN)
        for chunk in range(HIDDEN // CHUNK):
            unit = chunk * CHUNK + tl.arange(0, CHUNK)
            out = tl.load(second + (place * HIDDEN + unit)[:, None] * DIM + output[None, :])
            hidden = _product(
                at, live, pieces, matrix + unit[None, :], HIDDEN, CHUNK, INPUTS, INPUTS_PADDED, STEP, RESIDENT, TILE
            )
            hidden = tl.maximum(hidden + tl.load(vectors + place * HIDDEN + unit)[None, :], 0.0)
            # A plain sum would become the product's accumulator, which rounds in another way.
            total = tl.fma(tl.dot(hidden.to(out.dtype), out, input_precision="ieee"), 1.0, total)
        to = outputs + (row * EXPERTS + place)[:, None] * DIM + output[None, :]
        tl.store(to, total, mask=live[:, None])
    else:
        column = tl.arange(0, EXPERTS_PADDED)
        biases = vectors + EXPERTS * HIDDEN + EXPERTS_PADDED * DIM
        for task in range(TASKS):
            matrix = gates + task * (INPUTS_PADDED * EXPERTS_PADDED) + column[None, :]
            logits = _product(
                at,
                live,
                pieces,
                matrix,
                EXPERTS_PADDED,
                EXPERTS_PADDED,
                INPUTS,
                INPUTS_PADDED,
                STEP,
                RESIDENT,
                TILE,
            )
            logits += tl.load(biases + task * EXPERTS_PADDED + column)[None, :]
            logits = tl.where(live[:, None], logits, 0.0)
            logits = tl.where((column < EXPERTS)[None, :], logits, -float("inf"))
            weights = tl.exp(logits - tl.max(logits, 1)[:, None])
            weights = weights / tl.sum(weights, 1)[:, None]
            to = shares + (row * TASKS + task)[:, None] * EXPERTS_PADDED + column[None, :]
            tl.store(to, weights, mask=live[:, None])


@triton.jit
def _pieces(at, live, INPUTS: tl.constexpr, INPUTS_PADDED: tl.constexpr, STEP: tl.constexpr, RESIDENT: tl.constexpr):
    """A tile's inputs in pieces, where they are kept."""
    pieces = ()
    if RESIDENT:
        for step in tl.static_range(0, INPUTS_PADDED, STEP):
            pieces += (_piece(at, live, step, INPUTS, STEP),)
    return pieces


@triton.jit
def _piece(at, live, step, INPUTS: tl.constexpr, STEP: tl.constexpr):
    inner = step + tl.arange(0, STEP)
    return tl.load(at[:, None] + inner[None, :], mask=live[:, None] & (inner < INPUTS)[None, :], other=0.0)


@triton.jit
def _product(
    at,
    live,
    pieces,
    matrix,
    MATRIX_STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
    INPUTS_PADDED: tl.constexpr,
    STEP: tl.constexpr,
    RESIDENT: tl.constexpr,
    TILE: tl.constexpr,
):
    """A tile's inputs by a matrix, given by its first row's addresses `[1, columns]`."""
    total = tl.zeros((TILE, COLUMNS), tl.float32)
    if RESIDENT:
        # All of the matrix is asked for before any of it is waited for.
        matrices = ()
        for piece in tl.static_range(INPUTS_PADDED // STEP):
            inner = piece * STEP + tl.arange(0, STEP)
            matrices += (tl.load(matrix + inner[:, None] * MATRIX_STRIDE),)
        total = _sum(pieces, matrices, COLUMNS, TILE)
    else:
        for step in range(0, INPUTS_PADDED, STEP):
            inner = step + tl.arange(0, STEP)
            part = _piece(at, live, step, INPUTS, STEP)
            total = tl.dot(part, tl.load(matrix + inner[:, None] * MATRIX_STRIDE), total, input_precision="ieee")
    return total


@triton.jit
def _sum(pieces, matrices, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    total = tl.zeros((TILE, COLUMNS), tl.float32)
    for piece in tl.static_range(len(pieces)):
        total = tl.dot(pieces[piece], matrices[piece], total, input_precision="ieee")
    return total


@triton.jit
def mixed_towers(
    words,
    towers,
    vectors,
    outputs,
    shares,
    scores,
    room,
    candidates,
    EXPERTS: tl.constexpr,
    EXPERTS_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    TASKS: tl.constexpr,
    SIGMOIDS: tl.constexpr,
    TOWER_HIDDEN: tl.constexpr,
    TOWER_CHUNK: tl.constexpr,
    BIASES: tl.constexpr,
    HEADER_WORDS: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    TILE: tl.constexpr,
    TOGETHER: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (tiles of candidates, users)."""
    user = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * TILE
    count = tl.load(words + user * HEADER_WORDS + COUNT_WORD)
    candidate = start + tl.arange(0, TILE)
    row = user * room + candidate
    biases = vectors + BIASES
    share = shares + row * (TASKS * EXPERTS_PADDED)
    wait_for_kernel_before(DEPENDENT)
    if start >= count:
        return
    live = candidate < count
    weights = _shares(share, live, EXPERTS, TOGETHER)
    known = _outputs(outputs, biases, row, live, EXPERTS, DIM, TOGETHER)
    for task in range(TASKS):
        own = share + task * EXPERTS_PADDED
        mixed = _mixed(own, weights, known, outputs, biases, row, live, EXPERTS, DIM, TILE, TOGETHER)
        # The next task's, so that nobody waits for it; where there is none, nobody uses it.
        weights = _shares(own + EXPERTS_PADDED, live & (task + 1 < TASKS), EXPERTS, TOGETHER)
        tower = biases + EXPERTS_PADDED * DIM + TASKS * EXPERTS_PADDED + task * (2 * TOWER_HIDDEN + 1)
        logit = tl.zeros((TILE,), tl.float32) + tl.load(tower + 2 * TOWER_HIDDEN)
        for units in tl.static_range(0, TOWER_HIDDEN, TOWER_CHUNK):
            unit = units + tl.arange(0, TOWER_CHUNK)
            matrix = tl.load(towers + (task * DIM + tl.arange(0, DIM))[:, None] * TOWER_HIDDEN + unit[None, :])
            total = tl.dot(mixed.to(matrix.dtype), matrix, input_precision="ieee")
            logit += tower_logit(total, tower + unit, tower + TOWER_HIDDEN + unit)
        out = scores + (user * candidates + candidate) * TASKS + task
        tl.store(out, task_activation(logit, task, SIGMOIDS), mask=live)


@triton.jit
def _shares(at, live, EXPERTS: tl.constexpr, TOGETHER: tl.constexpr):
    """One task's shares, `[rows]` of each expert, where all experts are held at once."""
    weights = ()
    if TOGETHER:
        for expert in tl.static_range(EXPERTS):
            weights += (tl.load(at + expert, mask=live, other=0.0),)
    return weights


@triton.jit
def _outputs(outputs, biases, row, live, EXPERTS: tl.constexpr, DIM: tl.constexpr, TOGETHER: tl.constexpr):
    """The outputs of a tile, `[rows, dim]` of each expert, where they are held at once."""
    known = ()
    if TOGETHER:
        for expert in tl.static_range(EXPERTS):
            known += (_output(outputs, biases, row, live, expert, EXPERTS, DIM),)
    return known


@triton.jit
def _output(outputs, biases, row, live, expert, EXPERTS: tl.constexpr, DIM: tl.constexpr):
    """One expert's output for a tile, with its bias."""
    column = tl.arange(0, DIM)
    at = outputs + (row * EXPERTS + expert)[:, None] * DIM + column[None, :]
    return tl.load(at, mask=live[:, None], other=0.0) + tl.load(biases + expert * DIM + column)[None, :]


@triton.jit
def _mixed(
    share,
    weights,
    known,
    outputs,
    biases,
    row,
    live,
    EXPERTS: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """The experts' outputs by a task's shares: `[rows, dim]`.

    One fused multiply-add after the other: a sum over a dimension of a tensor is in the order of its layout.
    """
    mixed = tl.zeros((TILE, DIM), tl.float32)
    if TOGETHER:
        for expert in tl.static_range(EXPERTS):
            mixed = tl.fma(_column(weights[expert], DIM), known[expert], mixed)
    else:
        for expert in range(EXPERTS):
            weight = tl.load(share + expert, mask=live, other=0.0)
            output = _output(outputs, biases, row, live, expert, EXPERTS, DIM)
            mixed = tl.fma(_column(weight, DIM), output, mixed)
    return mixed


@triton.jit
def _column(weight, DIM: tl.constexpr):
    return tl.broadcast_to(weight[:, None], (weight.shape[0], DIM))
