"""The kernels compile for compute capability 9.0 in other sizes, and their products overlap.

That those of `flame-base` do, and fit a multiprocessor, says `test_aot.py`.
"""

from __future__ import annotations

import pytest

from flame.engine.kernels.climber_head import ClimberExperts, ClimberFusion
from flame.engine.kernels.experts.sizes import ExpertSizes
from flame.engine.kernels.fusion.sizes import FusionSizes
from flame.engine.kernels.nvrtc import compile_with_log


@pytest.mark.parametrize("heads", [1, 2])
def test_other_sizes_compile(heads: int) -> None:
    fusion = FusionSizes(2, 32 * heads, heads, 128, 1, 16 * heads, False, 12)
    experts = ExpertSizes(64, 8, 200, 40, 30, (True, False), 12)
    for kernel in (*ClimberFusion(fusion).kernels, *ClimberExperts(experts).kernels):
        assert "Performance Loss" not in compile_with_log(kernel, 90)[1]
