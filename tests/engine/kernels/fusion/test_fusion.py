"""Gated fusion, in one kernel and in several: against its definition and the model's own, with NaN around."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from flame.engine.backends.fused.precision import PRECISIONS, Precision
from flame.engine.kernels.fusion import Fusion, FusionSizes
from flame.engine.kernels.fusion.reference import fused
from flame.engine.kernels.kernel import Runtime
from flame.engine.kernels.wide_fusion import WideFusion
from flame.engine.models.gating import GatedFusion

HEADER = 5
FIRST = 128
TOLERANCES = {"fp32": 2e-5, "fp16": 8e-3, "bf16": 6e-2}

SIZES = {
    "two blocks, d = 24": FusionSizes(2, 24, 2, 40, 3, 12, True, HEADER),
    "climber wiring": FusionSizes(2, 24, 2, 40, 3, 12, False, HEADER),
    "three blocks": FusionSizes(3, 24, 2, 40, 2, 18, True, HEADER),
    "one block, one head": FusionSizes(1, 20, 1, 7, 1, 1, True, HEADER),
    "four blocks, d = 32": FusionSizes(4, 32, 2, 65, 2, 32, False, HEADER),
    "d = 96": FusionSizes(2, 96, 3, 384, 4, 48, True, HEADER),
}
WIDE = {
    "d = 200, odd": FusionSizes(2, 200, 4, 90, 2, 100, True, HEADER),
    "d = 130, climber wiring": FusionSizes(3, 130, 2, 33, 2, 97, False, HEADER),
    "five blocks": FusionSizes(5, 24, 2, 40, 2, 30, True, HEADER),
}


WAYS: list[tuple[Way, str]] = [(Fusion, name) for name in SIZES]
WAYS += [(WideFusion, name) for name in ("two blocks, d = 24", "climber wiring")]
WAYS += [(WideFusion, name) for name in WIDE]

Way = Callable[[FusionSizes, str], Fusion | WideFusion]


def module(sizes: FusionSizes) -> GatedFusion:
    """PyTorch's, with weights away from the neutral ones."""
    torch.manual_seed(1)
    wiring = "flame" if sizes.residual_first else "climber"
    reduction = max(1, sizes.width // sizes.squeezed)
    made = GatedFusion(sizes.blocks, sizes.dim, sizes.heads, sizes.ffn, sizes.scenarios, wiring, reduction)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    made.squeeze = torch.nn.Linear(sizes.width, sizes.squeezed)
    made.excite = torch.nn.Linear(sizes.squeezed, sizes.width)
    return made.requires_grad_(False)


def outputs(sizes: FusionSizes, counts: Sequence[int], precision: Precision) -> list[Tensor]:
    """Block outputs `[count, blocks, dim]` per user, as the precision holds them."""
    torch.manual_seed(0)
    return [torch.randn(count, sizes.blocks, sizes.dim).to(precision.dtype) for count in counts]


def launch(
    way: Way,
    sizes: FusionSizes,
    rows: Sequence[Tensor],
    scenarios: Sequence[int],
    room: int,
    runtime: Runtime,
    precision: Precision,
) -> Tensor:
    """The fused rows `[users, room, width]`; NaN wherever nothing was to be read or written."""
    op = way(sizes, precision.pointer)
    weights = op.pack(module(sizes).state_dict(), precision.dtype, runtime.device)
    shape = (len(rows), sizes.blocks, FIRST + room, sizes.dim)
    x = torch.full(shape, float("nan"), dtype=precision.dtype, device=runtime.device)
    words = torch.full((len(rows), HEADER), 2**30, dtype=torch.int32)
    for user, own in enumerate(rows):
        x[user, :, FIRST : FIRST + len(own)] = own.transpose(0, 1).to(runtime.device)
        words[user, 0], words[user, 1] = scenarios[user], len(own)
    work = op.work(len(rows), room, precision.dtype, runtime.device)
    for tensor in work:
        if isinstance(tensor, Tensor):
            tensor.fill_(float("nan"))
    return op.launch(runtime, weights, work, words.flatten().to(runtime.device), x, FIRST).float().cpu()


@pytest.mark.parametrize(("way", "name"), WAYS)
def test_fusion_is_that_of_the_definition(way: Way, name: str, runtime: Runtime, precision: Precision) -> None:
    sizes = (SIZES | WIDE)[name]
    counts = [37, 0, 1]
    scenarios = [user % sizes.scenarios for user in range(3)]
    rows = outputs(sizes, counts, precision)
    wide = launch(way, sizes, rows, scenarios, 64, runtime, precision)
    weights = module(sizes).state_dict()
    tolerance = TOLERANCES[precision.name]
    for user, count in enumerate(counts):
        expected = fused(sizes, weights, rows[user].float(), scenarios[user])
        torch.testing.assert_close(wide[user, :count], expected, rtol=tolerance, atol=tolerance)
        assert wide[user, count:].isnan().all()


@pytest.mark.parametrize(("way", "name"), WAYS)
def test_fusion_is_that_of_the_model(way: Way, name: str, runtime: Runtime) -> None:
    sizes, precision = (SIZES | WIDE)[name], PRECISIONS["fp32"]
    rows = outputs(sizes, [19], precision)
    wide = launch(way, sizes, rows, [sizes.scenarios - 1], 64, runtime, precision)
    expected = module(sizes)(rows[0].transpose(0, 1)[None], torch.tensor([sizes.scenarios - 1]))
    torch.testing.assert_close(wide[0, :19], expected[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("way", "name"),
    [
        (Fusion, "two blocks, d = 24"),
        (Fusion, "climber wiring"),
        (WideFusion, "two blocks, d = 24"),
    ],
)
def test_a_row_has_the_same_bits_wherever_it_stands(
    way: Way, name: str, runtime: Runtime, precision: Precision
) -> None:
    sizes = SIZES[name]
    rows = outputs(sizes, [70, 3], precision)
    several = launch(way, sizes, rows, [1, 0], 128, runtime, precision)
    order = [69, 5, 31]
    alone = launch(way, sizes, [rows[0][order]], [1], 64, runtime, precision)
    assert torch.equal(alone[0, :3], several[0, order])


def test_a_kernel_is_small_or_it_is_not() -> None:
    assert all(sizes.small for sizes in SIZES.values())
    assert not any(sizes.small for sizes in WIDE.values())
    with pytest.raises(AssertionError, match="WideFusion"):
        Fusion(WIDE["d = 200, odd"], "*fp32")
