"""LayerNorm and its statistics over live rows against the reference."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from flame.engine.kernels.kernel import Runtime
from flame.engine.kernels.norm import Norm, RowStatistics
from flame.engine.kernels.norm.reference import layer_norm, row_statistics
from flame.engine.kernels.rows import Header

HEADER = Header(words=6, candidates=1, lengths=2)
LENGTHS, COUNTS = ((37, 0), (1, 128)), (5, 64)
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}


class Shape(NamedTuple):
    users: int = 2
    blocks: int = 2
    events: int = 128
    candidates: int = 64


ROWS = Shape()


@pytest.fixture
def words(runtime: Runtime) -> Tensor:
    header = torch.full((2, HEADER.words), -(2**31), dtype=torch.int32)
    header[:, 1], header[:, 2:4] = torch.tensor(COUNTS), torch.tensor(LENGTHS)
    return header.to(runtime.device)


def live(select: str) -> Tensor:
    events = torch.arange(128) < torch.tensor(LENGTHS)[..., None]
    candidates = (torch.arange(64) < torch.tensor(COUNTS)[:, None, None]).expand(-1, 2, -1)
    return torch.cat([events & (select != "candidates"), candidates & (select != "events")], -1)


def inputs(width: int, precision, runtime: Runtime) -> Tensor:
    x = torch.randn(2, 2, 192, width) * 2 + 1
    x[~live("all")] = float("nan")
    return x.to(runtime.device, precision.dtype)


@pytest.mark.parametrize("select", ["all", "events", "candidates"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_live_rows_are_normed_and_no_other_is_written(runtime, precision, nan_filled, words, select, residual) -> None:
    x, behind = inputs(45, precision, runtime), inputs(33, precision, runtime)
    gain, shift = torch.rand(2, 29) + 0.5, torch.randn(2, 29)
    norm = Norm("n", HEADER, precision.triton, 2, 29, 45, 33, 1e-6, x_at=11, y_at=3, residual=residual)
    y = nan_filled(2, 2, 192, 33, dtype=precision.dtype)
    both = gain.to(runtime.device), shift.to(runtime.device)
    norm.launch(runtime, ROWS, words, x, both, y, residual=behind if residual else None, select=select)
    rest = behind[..., 3:32].cpu() if residual else None
    want = layer_norm(x[..., 11:40].cpu(), gain, shift, 1e-6, rest)[live(select)]
    got = y[..., 3:32].cpu().float()
    assert (got[live(select)] - want).abs().max() < TOLERANCE[precision.name] * want.abs().max()
    assert got[~live(select)].isnan().all()
    assert y[..., :3].isnan().all()
    assert y[..., 32:].isnan().all()


def test_statistics_of_live_rows(runtime, precision, nan_filled, words) -> None:
    x = inputs(45, precision, runtime)
    statistics = nan_filled(2, 2, 192, 2)
    RowStatistics("s", HEADER, precision.triton, 2, 29, 45, 1e-3, x_at=11).launch(runtime, ROWS, words, x, statistics)
    want = row_statistics(x[..., 11:40].cpu(), 1e-3)
    chosen = live("all")
    assert torch.allclose(statistics.cpu()[chosen], want[chosen], rtol=1e-5, atol=1e-6)
    assert statistics.cpu()[~chosen].isnan().all()
