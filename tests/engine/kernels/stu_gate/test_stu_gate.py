"""HSTU's gate against its reference."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from flame.engine.kernels.rows import Header
from flame.engine.kernels.stu_gate import StuGate
from flame.engine.kernels.stu_gate.reference import stu_gate

HEADER = Header(words=4, candidates=1, lengths=2)
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}


class Shape(NamedTuple):
    users: int = 3
    blocks: int = 1
    events: int = 128
    candidates: int = 64


@pytest.mark.parametrize("select", ["all", "events", "candidates"])
def test_live_rows_are_gated_and_no_other_is_touched(runtime, precision, select) -> None:
    lengths, counts = torch.tensor([37, 0, 128]), torch.tensor([64, 0, 1])
    words = torch.full((3, 4), -1, dtype=torch.int32)
    words[:, 1], words[:, 2] = counts, lengths
    rows = torch.randn(3, 1, 192, 95).to(precision.dtype)
    events, candidates = torch.arange(128) < lengths[:, None], torch.arange(64) < counts[:, None]
    rows[:, 0][~torch.cat([events, candidates], 1)] = float("nan")
    chosen = torch.cat([events & (select != "candidates"), candidates & (select != "events")], 1)
    gain, shift = torch.rand(28) + 0.5, torch.randn(28)
    gate = StuGate(HEADER, precision.triton, 28, 95, u_at=1, o_at=33, y_at=64, eps=1e-6)
    got = rows.clone().to(runtime.device)
    norm = gain.to(runtime.device), shift.to(runtime.device)
    gate.launch(runtime, Shape(), words.to(runtime.device), got, norm, select=select)
    got = got.cpu()[:, 0]
    want = stu_gate(rows[:, 0, :, 1:29], rows[:, 0, :, 33:61], gain, shift, 1e-6)[chosen]
    assert (got[chosen][:, 64:92].float() - want).abs().max() < TOLERANCE[precision.name] * want.abs().max()
    got[chosen, 64:92] = rows[:, 0][chosen, 64:92]
    assert torch.equal(got.nan_to_num(7.0), rows[:, 0].nan_to_num(7.0))
