"""CUDA C++ kernels compiled ahead of time with NVRTC, for any architecture and without a GPU or a toolkit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cuda.bindings import nvrtc

from flame.engine.kernels.kernel import Cubin, CudaKernel, KernelError

_FLAGS = ("--std=c++20",)
_LOG_BYTES = 6000


def compile_cuda(kernel: CudaKernel, capability: int) -> Cubin:
    """Machine code of `kernel` for compute capability `capability` (90 for 9.0).

    Raises `KernelError` with the compiler's log. The source sees the files beside it as `#include "NAME"`.
    """
    return compile_with_log(kernel, capability)[0]


def compile_with_log(kernel: CudaKernel, capability: int) -> tuple[Cubin, str]:
    """The same, and what the compiler said though it compiled: warnings, and optimizations that it had to leave out."""
    with _program(kernel) as program:
        flags = [flag.encode() for flag in (*_FLAGS, f"--gpu-architecture={architecture(capability)}")]
        flags += [f"--define-macro={name}={value}".encode() for name, value in kernel.defines.items()]
        status = nvrtc.nvrtcCompileProgram(program, len(flags), flags)[0]
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"kernel {kernel.name} does not compile ({status.name}):\n{_log(program)}")
        code = _text(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        log = _log(program)
    cubin = Cubin(
        name=kernel.name,
        entry=kernel.entry,
        code=code,
        threads=kernel.threads,
        shared=kernel.shared,
        signature=tuple(kernel.signature.values()),
        dependent=kernel.dependent,
    )
    return cubin, log


def architecture(capability: int) -> str:
    """The compiler's name of an architecture; from 9.0 on with its own instructions, as cubins never travel on."""
    return f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"


def version() -> str:
    """Of the compiler."""
    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


@contextmanager
def _program(kernel: CudaKernel) -> Iterator[Any]:
    path = Path(kernel.source)
    files = [file for file in sorted(path.parent.iterdir()) if _is_header(file)] + [
        Path(file) for file in kernel.headers
    ]
    headers = {file.name: file.read_bytes() for file in files}
    contents, names = list(headers.values()), [name.encode() for name in headers]
    program = _value(
        nvrtc.nvrtcCreateProgram(path.read_bytes(), path.name.encode(), len(headers), contents, names), kernel
    )
    try:
        yield program
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _is_header(file: Path) -> bool:
    return file.suffix in (".h", ".cuh")


def _value(answer: tuple[Any, ...], kernel: CudaKernel) -> Any:
    if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelError(f"kernel {kernel.name} cannot be compiled: {answer[0].name}")
    return answer[1]


def _text(program: Any, size: Any, get: Any) -> bytes:
    """What `get` writes into the bytes it is given: never one byte alone, which Python shares with everybody."""
    length: int = size(program)[1]
    content = bytes(length + 1)
    get(program, content)
    return content[:length]


def _log(program: Any) -> str:
    """The head of the log: the first error is the one to read."""
    log = _text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
    return log.decode(errors="replace").rstrip("\0 \n")[:_LOG_BYTES]
