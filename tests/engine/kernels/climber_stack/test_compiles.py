"""The kernels compile for compute capability 9.0 in other sizes than those of `flame-base`.

That these fit, keep to the stack what is seldom needed, and overlap their products, says `test_aot.py`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flame.engine.kernels.climber_stack import StackHeader, StackSizes
from flame.engine.kernels.climber_stack.variants import VARIANTS, Variant
from flame.engine.kernels.nvrtc import compile_with_log
from flame.engine.kernels.resources import resources

SIZES = StackSizes(layers=12, blocks=2, heads=3, dim=96, ffn=384, scenarios=2)
HEADER = StackHeader(8, 0, 1, 2)
WIDE = [variant for variant in VARIANTS if variant.kind == "wide" and variant.owners > 1]
"""That of one group of warps is the code of two."""
# What a row out of range passes to the function that redoes it (96 bytes), and what is kept around that call
STACK = 256


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "ffn"), [(1, 16), (1, 80), (2, 256), (2, 1024)])
@pytest.mark.parametrize("variant", WIDE, ids=lambda variant: variant.name)
def test_products_of_warpgroups_overlap_in_other_sizes(variant: Variant, heads: int, ffn: int) -> None:
    sizes = SIZES._replace(heads=heads, dim=32 * heads, ffn=ffn)
    cubin, log = compile_with_log(variant.kernel(sizes, HEADER), 90)
    assert "Performance Loss" not in log
    assert resources(cubin, 90).stack <= STACK


def test_products_that_cannot_overlap_are_told(tmp_path: Path) -> None:
    """What the tests above look for is what the compiler says: a product that is never waited for."""
    kernel = WIDE[0].kernel(SIZES, HEADER)
    folder = tmp_path / "cuda"
    shutil.copytree(Path(kernel.source).parent, folder)
    products = folder / "wide_products.cuh"
    text = products.read_text()
    logits = "  wgmma(s, q.q[1], b + 2 * MATRIX);\n"
    assert logits in text
    products.write_text(text.replace(logits, logits + "  s[0][0] += 1.f;\n"))
    assert "Performance Loss" in compile_with_log(replace(kernel, source=str(folder / "wide.cu")), 90)[1]
