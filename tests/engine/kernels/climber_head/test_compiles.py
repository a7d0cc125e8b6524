"""The kernels compile for compute capability 9.0, fit a multiprocessor, and their products overlap."""

from __future__ import annotations

import pytest

from flame.engine.kernels.climber_head import ClimberExperts, ClimberFusion
from flame.engine.kernels.experts.sizes import ExpertSizes
from flame.engine.kernels.fusion.sizes import FusionSizes
from flame.engine.kernels.nvrtc import compile_with_log
from flame.engine.kernels.resources import resources, shared_limit

FUSION = FusionSizes(2, 96, 3, 384, 4, 48, True, 12)
EXPERTS = ExpertSizes(192, 8, 512, 64, 64, (True,) * 4, 12)
KERNELS = (*ClimberFusion(FUSION).kernels, *ClimberExperts(EXPERTS).kernels)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_compiles_without_spilling(kernel: object) -> None:
    cubin, log = compile_with_log(kernel, 90)
    found = resources(cubin, 90)
    assert "Performance Loss" not in log
    assert found.stack == 0
    assert found.shared <= shared_limit(90)
    assert found.registers * cubin.threads <= 65536


@pytest.mark.parametrize("heads", [1, 2])
def test_other_sizes_compile(heads: int) -> None:
    fusion = FusionSizes(2, 32 * heads, heads, 128, 1, 16 * heads, False, 12)
    experts = ExpertSizes(64, 8, 200, 40, 30, (True, False), 12)
    for kernel in (*ClimberFusion(fusion).kernels, *ClimberExperts(experts).kernels):
        assert "Performance Loss" not in compile_with_log(kernel, 90)[1]
