"""Device code of towers."""

from __future__ import annotations

import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import wait_for_kernel_before


@triton.jit
def normed_towers(
    words,
    x,
    hidden,
    vectors,
    scores,
    first_row,
    user_stride,
    row_stride,
    candidates,
    DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    TASKS: tl.constexpr,
    SIGMOIDS: tl.constexpr,
    EPS: tl.constexpr,
    HEADER_WORDS: tl.constexpr,
    COUNT_WORD: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (tiles of candidates, tasks, users)."""
    task = tl.program_id(1)
    user = tl.program_id(2).to(tl.int64)
    start = tl.program_id(0) * TILE
    count = tl.load(words + user * HEADER_WORDS + COUNT_WORD)
    wait_for_kernel_before(DEPENDENT)
    if start >= count:
        return
    candidate = start + tl.arange(0, TILE)
    live = candidate < count
    at = x + user * user_stride + (first_row + candidate) * row_stride
    mean, scale = _moments(at, live, DIM, EPS, TILE, STEP)
    tower = vectors + 2 * DIM + task * (2 * HIDDEN + 1)
    logit = tl.zeros((TILE,), tl.float32) + tl.load(tower + 2 * HIDDEN)
    for units in tl.static_range(0, HIDDEN, CHUNK):
        unit = units + tl.arange(0, CHUNK)
        total = tl.zeros((TILE, CHUNK), tl.float32)
        for step in range(0, DIM, STEP):
            inner = step + tl.arange(0, STEP)
            known = inner < DIM
            part = tl.load(at[:, None] + inner[None, :], mask=live[:, None] & known[None, :], other=0.0)
            gain = tl.load(vectors + inner, mask=known, other=0.0)
            shift = tl.load(vectors + DIM + inner, mask=known, other=0.0)
            normal = (part.to(tl.float32) - mean[:, None]) * scale[:, None] * gain[None, :] + shift[None, :]
            of = hidden + (task * DIM + inner)[:, None] * HIDDEN + unit[None, :]
            matrix = tl.load(of, mask=known[:, None], other=0.0)
            total = tl.dot(normal.to(matrix.dtype), matrix, total, input_precision="ieee")
        logit += tower_logit(total, tower + unit, tower + HIDDEN + unit)
    out = scores + (user * candidates + candidate) * TASKS + task
    tl.store(out, task_activation(logit, task, SIGMOIDS), mask=live)


@triton.jit
def _moments(at, live, DIM: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr):
    """Mean and reciprocal standard deviation of rows."""
    total = tl.zeros((TILE,), tl.float32)
    for step in range(0, DIM, STEP):
        inner = step + tl.arange(0, STEP)
        seen = live[:, None] & (inner < DIM)[None, :]
        total += tl.sum(tl.load(at[:, None] + inner[None, :], mask=seen, other=0.0).to(tl.float32), 1)
    mean = total / DIM
    squares = tl.zeros((TILE,), tl.float32)
    for step in range(0, DIM, STEP):
        inner = step + tl.arange(0, STEP)
        seen = live[:, None] & (inner < DIM)[None, :]
        part = tl.load(at[:, None] + inner[None, :], mask=seen, other=0.0).to(tl.float32)
        centred = tl.where(seen, part - mean[:, None], 0.0)
        squares += tl.sum(centred * centred, 1)
    return mean, 1.0 / tl.sqrt(squares / DIM + EPS)


@triton.jit
def tower_logit(total, bias_at, weight_at):
    """What some hidden units add to a logit; `total` `[rows, units]` before bias and ReLU."""
    units = tl.maximum(total + tl.load(bias_at)[None, :], 0.0)
    return tl.sum(units * tl.load(weight_at)[None, :], 1)


@triton.jit
def task_activation(logit, task, SIGMOIDS: tl.constexpr):
    """The score of a logit of task `task`."""
    bounded = task < 0
    for other in tl.static_range(len(SIGMOIDS)):
        if SIGMOIDS[other]:
            bounded = bounded | (task == other)
    return tl.where(bounded, tl.sigmoid(logit), logit)
