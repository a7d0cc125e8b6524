"""The kernels compile for compute capability 9.0, fit a multiprocessor, and keep to the stack what is seldom needed."""

from __future__ import annotations

import pytest

from flame.engine.kernels.climber_stack import StackHeader, StackSizes
from flame.engine.kernels.climber_stack.variants import VARIANTS, Variant
from flame.engine.kernels.nvrtc import compile_cuda
from flame.engine.kernels.resources import resources, shared_limit

SIZES = StackSizes(layers=12, blocks=2, heads=3, dim=96, ffn=384, scenarios=2)
# What a row out of range passes to the function that redoes it (96 bytes), and what is kept around that call
STACK = 256


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_compiles_without_spilling_in_its_loops(variant: Variant) -> None:
    cubin = compile_cuda(variant.kernel(SIZES, StackHeader(8, 0, 1)), 90)
    found = resources(cubin, 90)
    assert found.stack <= STACK
    assert found.shared <= shared_limit(90)
    assert variant.resident * (found.shared + 1024) <= 228 * 1024
    assert found.registers * cubin.threads * variant.resident <= 65536
