"""The linear kernel against its reference: parts, states, folded norm, live rows only."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from flame.engine.kernels.kernel import Runtime
from flame.engine.kernels.linear import Linear, LinearMemory, Part, StatePart, Tile, linear_tile
from flame.engine.kernels.linear.reference import linear
from flame.engine.kernels.rows import Header

HEADER = Header(words=7, candidates=1, lengths=2)
LENGTHS = ((37, 0), (1, 128), (0, 0))
COUNTS = (5, 64, 0)
TOLERANCE = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 4e-2}


class Shape(NamedTuple):
    users: int = 3
    blocks: int = 2
    events: int = 128
    candidates: int = 64


ROWS = Shape()


@pytest.fixture
def words(runtime: Runtime) -> Tensor:
    header = torch.full((ROWS.users, HEADER.words), -(2**31), dtype=torch.int32)
    header[:, 1] = torch.tensor(COUNTS)
    header[:, 2:4] = torch.tensor(LENGTHS)
    return header.to(runtime.device)


def live(select: str = "all") -> Tensor:
    """Which rows are live and selected: bool `[users, blocks, rows]`."""
    events = torch.arange(ROWS.events) < torch.tensor(LENGTHS)[..., None]
    candidates = (torch.arange(ROWS.candidates) < torch.tensor(COUNTS)[:, None, None]).expand(-1, 2, -1)
    return torch.cat([events & (select != "candidates"), candidates & (select != "events")], -1)


def inputs(width: int, precision: object, runtime: Runtime) -> Tensor:
    """Random rows, NaN where none is live."""
    x = torch.randn(ROWS.users, ROWS.blocks, ROWS.events + ROWS.candidates, width)
    x[~live()] = float("nan")
    return x.to(runtime.device, precision.dtype)


def no_states(runtime: Runtime) -> Tensor:
    return torch.zeros(ROWS.users, dtype=torch.int64, device=runtime.device)


def close(got: Tensor, want: Tensor, precision: object) -> None:
    error = (got.float() - want).abs().max() / want.abs().max()
    assert error < TOLERANCE[precision.name], f"error {error}"


@pytest.mark.parametrize("select", ["all", "events", "candidates"])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_live_rows_are_right_and_no_other_is_written(runtime, precision, nan_filled, words, select, activation) -> None:
    x = inputs(41, precision, runtime)
    tile = linear_tile((29,), 41, precision.name, 90)
    layer = Linear("one", HEADER, precision.triton, 2, 41, (Part(29, 3, activation),), 41, 37, tile)
    weight, bias = torch.randn(2, 29, 41) / 6, torch.randn(2, 29)
    y = nan_filled(ROWS.users, 2, 192, 37, dtype=precision.dtype)
    weights = layer.pack(weight.to(runtime.device), bias.to(runtime.device))
    layer.launch(runtime, ROWS, weights, LinearMemory(words, no_states(runtime), x, y), select=select)
    rounded = weight.to(precision.dtype)
    want = linear(x.cpu(), rounded, bias, activation=activation)
    close(y[..., 3:32].cpu()[live(select)], want[live(select)], precision)
    assert y.cpu()[~live(select)].isnan().all()
    assert y[..., :3].isnan().all()
    assert y[..., 32:].isnan().all()


def test_a_norm_is_folded_in_and_a_residual_added_in_place(runtime, precision, words) -> None:
    x = inputs(48, precision, runtime) * 0.5 + 3
    y = inputs(48, precision, runtime)
    before = y.cpu().clone()
    layer = Linear(
        "two", HEADER, precision.triton, 2, 48, (Part(48),), 48, 48, Tile(64, 16, 32, 4, 2), normed=True, residual=True
    )
    weight, bias = torch.randn(2, 48, 48) / 7, torch.randn(2, 48)
    norm = torch.rand(2, 48) + 0.5, torch.randn(2, 48)
    rows = x.double()
    statistics = torch.stack([rows.mean(-1), (rows.var(-1, correction=0) + 1e-6).rsqrt()], -1).float()
    weights = layer.pack(
        weight.to(runtime.device), bias.to(runtime.device), tuple(tensor.to(runtime.device) for tensor in norm)
    )
    layer.launch(
        runtime,
        ROWS,
        weights,
        LinearMemory(words, no_states(runtime), x, y, statistics=statistics.contiguous(), residual=y),
    )
    want = linear(x.cpu(), weight, bias, norm=norm, residual=before)
    close(y.cpu()[live()], want[live()], precision)


def test_parts_go_to_states_and_own_rows(runtime, precision, nan_filled, words) -> None:
    """Keys (2 heads of 10) and values (2 heads of 14) of events to the states' second layer, of candidates to `own`."""
    capacity, layers, blocks = 128, 3, 2
    step = blocks * 2 * 10 + blocks * 2 * 14
    parts = (
        Part(20, 4, "silu"),
        Part(20, 28, "none", StatePart(0, step, 2, 10)),
        Part(28, 0, "relu", StatePart(40, step, 2, 14)),
    )
    layer = Linear("three", HEADER, precision.triton, 2, 24, parts, 24, 24, Tile(64, 16, 16, 4, 2), own_row=50)
    x, weight, bias = inputs(24, precision, runtime), torch.randn(2, 68, 24) / 5, torch.randn(2, 68)
    size = torch.finfo(precision.dtype).bits // 8
    memory = nan_filled(ROWS.users, (256 + layers * step * capacity * size) // size, dtype=precision.dtype)
    memory.view(torch.int32)[:, 0] = capacity
    states = torch.tensor([state.data_ptr() for state in memory], device=runtime.device)
    y, own = (nan_filled(ROWS.users, 2, rows, row, dtype=precision.dtype) for rows, row in ((192, 24), (64, 50)))
    weights = layer.pack(weight.to(runtime.device), bias.to(runtime.device))
    launch = LinearMemory(words, states, x, y, own)
    layer.launch(runtime, ROWS, weights, launch, layer=1, first_event_part=1)
    want = linear(x.cpu(), weight.to(precision.dtype), bias)
    events, candidates = live("events"), live("candidates")
    assert y[:, :, :128].isnan().all()
    close(y.cpu()[candidates][:, 4:], torch.nn.functional.silu(want[candidates][:, :20]), precision)
    close(own.cpu()[candidates[:, :, 128:]][:, 28:48], want[candidates][:, 20:40], precision)
    close(own.cpu()[candidates[:, :, 128:]][:, :28], want[candidates][:, 40:].relu(), precision)
    body = memory.cpu()[:, 256 // size :].view(ROWS.users, layers, step * capacity)
    assert body[:, [0, 2]].isnan().all()
    keys = body[:, 1, : 40 * capacity].view(ROWS.users, 2, 2, capacity, 10).transpose(2, 3).flatten(3)
    values = body[:, 1, 40 * capacity :].view(ROWS.users, 2, 2, capacity, 14).transpose(2, 3).flatten(3)
    seen = events[:, :, :128]
    close(keys[seen], want[:, :, :128][seen][:, 20:40], precision)
    close(values[seen], want[:, :, :128][seen][:, 40:].relu(), precision)
    assert keys[~seen].isnan().all()
    assert values[~seen].isnan().all()
