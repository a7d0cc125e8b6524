"""Machine code of the kernels under test, compiled once for all tests and processes that share a folder."""

from __future__ import annotations

import hashlib
import os
import pickle
from functools import cache
from importlib.metadata import version
from pathlib import Path

from flame.engine.backends.fused.compiling import compile_kernel
from flame.engine.kernels import nvrtc
from flame.engine.kernels.kernel import Cubin, CudaKernel, Kernel

GIVEN = "FLAME_TEST_CUBINS"
"""The variable that names a folder to keep between runs; a machine without a GPU may fill it for one that has."""


def cached(kernel: Kernel, capability: int, folder: Path) -> Cubin:
    """`kernel` out of `folder`, compiled into it where it is not there yet."""
    file = folder / f"{kernel.name}-{_key(kernel, capability)}"
    if file.exists():
        found: Cubin = pickle.loads(file.read_bytes())
        return found
    cubin = compile_kernel(kernel, capability)
    folder.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    new.write_bytes(pickle.dumps(cubin))
    new.replace(file)
    return cubin


def _key(kernel: Kernel, capability: int) -> str:
    """Of everything that the machine code depends on; the place of the sources is no part of it."""
    if isinstance(kernel, CudaKernel):
        defines = sorted(kernel.defines.items())
        sources = (_sources(Path(kernel.source).parent), [Path(header).read_text() for header in kernel.headers])
        what = (sources, Path(kernel.source).name, kernel.entry, defines, nvrtc.version())
        launch = (kernel.threads, kernel.shared, kernel.dependent)
    else:
        # Triton's own key of the function and of all that it calls.
        constants = sorted((name, repr(value)) for name, value in kernel.constants.items())
        what = (kernel.function.cache_key, constants, version("triton"))
        launch = (
            kernel.warps,
            kernel.stages,
            kernel.registers,
            sorted(kernel.unaligned),
            sorted(kernel.multiples_of_16),
        )
    text = repr((what, launch, list(kernel.signature.items()), capability))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _sources(folder: Path) -> str:
    """A hash of all sources beside a CUDA source."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
