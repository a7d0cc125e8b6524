"""Triton kernels compiled ahead of time, for any architecture and without a GPU."""

from __future__ import annotations

import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flame.engine.kernels.kernel import DEPENDENTS_SINCE, Cubin, KernelError, TritonKernel

_PARAMETER = re.compile(r"^\s*\.param\s", re.MULTILINE)


def compile_triton(kernel: TritonKernel, capability: int) -> Cubin:
    """Machine code of `kernel` for compute capability `capability` (90 for 9.0).

    Raises what Triton raises, and `KernelError` for a kernel that wants scratch memory, which no launch gives it.
    """
    dependent = kernel.dependent and capability >= DEPENDENTS_SINCE
    compiled = _compiled(kernel, capability, dependent)
    if scratch := compiled.metadata.global_scratch_size:
        raise KernelError(f"kernel {kernel.name} wants {scratch} bytes of scratch memory per program, and gets none")
    entry: str = compiled.metadata.name
    parameters = _parameters(compiled.asm["ptx"], entry)
    return Cubin(
        name=kernel.name,
        entry=entry,
        code=compiled.asm["cubin"],
        threads=32 * kernel.warps,
        shared=compiled.metadata.shared,
        signature=tuple(kernel.signature.values()),
        hidden=parameters - len(kernel.signature),
        dependent=dependent,
    )


def _compiled(kernel: TritonKernel, capability: int, dependent: bool) -> Any:
    constants = kernel.all_constants(dependent)
    types = dict(kernel.signature) | dict.fromkeys(constants, "constexpr")
    names = kernel.function.arg_names
    source = ASTSource(
        kernel.function,
        signature={name: types[name] for name in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in _aligned(kernel)},
    )
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages, "maxnreg": kernel.registers}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _aligned(kernel: TritonKernel) -> list[str]:
    pointers = [
        name for name, kind in kernel.signature.items() if kind.startswith("*") and name not in kernel.unaligned
    ]
    return pointers + sorted(kernel.multiples_of_16)


def _parameters(ptx: str, entry: str) -> int:
    """How many parameters the entry has in the end: Triton adds pointers to scratch memory behind ours."""
    head = ptx.partition(f".entry {entry}(")[2].partition(")")[0]
    return len(_PARAMETER.findall(head))
