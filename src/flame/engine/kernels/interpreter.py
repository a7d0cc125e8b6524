"""Kernels on a CPU, for tests: Triton's interpreter runs them as NumPy code.

Triton decides when it is imported: TRITON_INTERPRET=1 must stand in the environment before. fp32 and fp16 only, the
interpreter's bf16 is wrong.
"""

from __future__ import annotations

import torch

from flame.engine.kernels.arguments import check
from flame.engine.kernels.kernel import Kernel, TritonKernel


class Interpreter:
    """Runs Triton kernels on CPU tensors, program after program, with the arguments that a GPU would take."""

    device = torch.device("cpu")

    def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: torch.Tensor | int | float | bytes) -> None:
        """Runs `kernel` and returns when it is done."""
        assert isinstance(kernel, TritonKernel), f"{kernel.name} is CUDA C++, which nothing interprets"
        check(kernel, arguments, self.device)
        kernel.function[grid](*arguments, **kernel.all_constants(dependent=False))
