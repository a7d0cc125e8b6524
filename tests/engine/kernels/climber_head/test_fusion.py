"""Gated fusion in one CUDA launch: against its definition, in all configurations, with NaN around."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flame.engine.kernels.climber_head import ClimberFusion, fusion_fits
from flame.engine.kernels.fusion.reference import fused
from flame.engine.kernels.fusion.sizes import FusionSizes
from flame.engine.kernels.kernel import Runtime
from flame.engine.models.gating import GatedFusion
from tests.engine.kernels.climber_head.lanes import lane_order

HEADER = 5
FIRST = 128
FEW, MANY = 10**9, 0
"""Processors that make every launch one of few or of many rows."""
SIZES = {
    "one head": FusionSizes(2, 32, 1, 64, 1, 5, True, HEADER),
    "climber wiring, d = 64": FusionSizes(2, 64, 2, 192, 3, 32, False, HEADER),
    "d = 96": FusionSizes(2, 96, 3, 384, 4, 48, True, HEADER, scenario_word=2, count_word=4),
}


def module(sizes: FusionSizes) -> GatedFusion:
    """PyTorch's, with weights away from the neutral ones."""
    torch.manual_seed(1)
    wiring = "flame" if sizes.residual_first else "climber"
    made = GatedFusion(sizes.blocks, sizes.dim, sizes.heads, sizes.ffn, sizes.scenarios, wiring, reduction=8)
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    made.squeeze = torch.nn.Linear(sizes.width, sizes.squeezed)
    made.excite = torch.nn.Linear(sizes.squeezed, sizes.width)
    return made.requires_grad_(False)


def outputs(sizes: FusionSizes, counts: Sequence[int]) -> list[Tensor]:
    """Block outputs `[count, blocks, dim]` per user."""
    torch.manual_seed(0)
    return [torch.randn(count, sizes.blocks, sizes.dim).bfloat16() for count in counts]


def launch(
    sizes: FusionSizes, rows: Sequence[Tensor], scenarios: Sequence[int], room: int, machine: Runtime, processors: int
) -> Tensor:
    """The fused rows `[users, room, width]`; NaN wherever nothing was to be read or written."""
    op = ClimberFusion(sizes, processors)
    weights = op.pack(module(sizes).state_dict(), torch.bfloat16, machine.device)
    shape = (len(rows), sizes.blocks, FIRST + room, sizes.dim)
    x = torch.full(shape, float("nan"), dtype=torch.bfloat16, device=machine.device)
    words = torch.full((len(rows), HEADER), 2**30, dtype=torch.int32)
    for user, own in enumerate(rows):
        x[user, :, FIRST : FIRST + len(own)] = own.transpose(0, 1).to(machine.device)
        words[user, sizes.scenario_word], words[user, sizes.count_word] = scenarios[user], len(own)
    work = op.work(len(rows), room, torch.bfloat16, machine.device)
    work.wide.fill_(float("nan"))
    wide = op.launch(machine, weights, work, words.flatten().to(machine.device), x, FIRST).float().cpu()
    return wide[:, :, lane_order(sizes.width).argsort()]


@pytest.mark.parametrize("processors", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("name", SIZES)
def test_fusion_is_that_of_the_definition(name: str, processors: int, machine: Runtime) -> None:
    sizes, counts = SIZES[name], [37, 0, 1]
    scenarios = [user % sizes.scenarios for user in range(3)]
    rows = outputs(sizes, counts)
    wide = launch(sizes, rows, scenarios, 64, machine, processors)
    weights = module(sizes).state_dict()
    for user, count in enumerate(counts):
        expected = fused(sizes, weights, rows[user].float(), scenarios[user])
        torch.testing.assert_close(wide[user, :count], expected, rtol=2e-2, atol=3e-2)
        assert (wide[user, :count] - expected).norm() <= 5e-3 * expected.norm()
        assert wide[user, count:].isnan().all()


@pytest.mark.parametrize("name", SIZES)
def test_a_candidate_has_the_same_bits_wherever_it_stands(name: str, machine: Runtime) -> None:
    sizes = SIZES[name]
    rows = outputs(sizes, [70, 3])
    last = sizes.scenarios - 1
    several = launch(sizes, rows, [last, 0], 128, machine, MANY)
    order = [69, 5, 31]
    alone = launch(sizes, [rows[0][order]], [last], 64, machine, FEW)
    assert torch.equal(alone[0, :3], several[0, order])


def test_other_sizes_are_for_other_kernels() -> None:
    right = SIZES["d = 96"]
    assert all(fusion_fits(sizes) for sizes in SIZES.values())
    for change in ({"blocks": 3}, {"heads": 4}, {"ffn": 100}, {"squeezed": 128}, {"dim": 192, "heads": 6}):
        assert not fusion_fits(right._replace(**change))
    with pytest.raises(AssertionError, match="other kernels"):
        ClimberFusion(right._replace(blocks=1))
