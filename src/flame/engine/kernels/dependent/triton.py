"""Device code of dependent launches."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_kernel_before(DEPENDENT: tl.constexpr):
    """Once in every program, before it touches what other kernels write, and before it may return."""
    if DEPENDENT:
        gdc_wait()


@triton.jit
def let_kernel_behind_begin(DEPENDENT: tl.constexpr):
    """Not before a program has waited itself; the kernel behind begins when all programs have come here."""
    if DEPENDENT:
        gdc_launch_dependents()
