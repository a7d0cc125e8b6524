"""Compiled kernels on a GPU: machine code loaded by the CUDA driver and launched on PyTorch's current stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from cuda.bindings import driver

from flame.engine.kernels.arguments import Arguments, check
from flame.engine.kernels.kernel import Cubin, Kernel, KernelError

_STATIC_SHARED = 48 * 1024
_SHARED = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class Driver:
    """Launches the kernels it was given the machine code of, by name; any thread may launch.

    Machine code is loaded once, when this is made, and unloaded by `close`: no launch may be under way then, and no
    captured graph may run after it.
    """

    def __init__(self, cubins: Iterable[Cubin], device: torch.device) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self._cubins: dict[str, Cubin] = {}
        self._functions: dict[str, Any] = {}
        self._libraries: list[Any] = []
        # A stream exists in PyTorch's context alone: with one, the context is made and current.
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            self._context = answer("the CUDA context", driver.cuCtxGetCurrent())
            try:
                for cubin in cubins:
                    self._load(cubin)
            except BaseException:
                self.close()
                raise

    def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: torch.Tensor | int | float | bytes) -> None:
        """Puts one launch on the current stream of `device`, also while it is captured. Raises `KernelError`."""
        cubin = self._cubins.get(kernel.name)
        if cubin is None:
            raise KernelError(f"kernel {kernel.name} was not compiled, only {', '.join(sorted(self._cubins))}")
        check(kernel, arguments, self.device)
        self._make_current()
        packed = Arguments(cubin, arguments)
        stream = torch.cuda.current_stream(self.device).cuda_stream
        config = _config(cubin, grid, stream)
        launched = driver.cuLaunchKernelEx(config, self._functions[kernel.name], packed.addresses, 0)
        answer(f"kernel {kernel.name} with grid {grid}", launched)

    def close(self) -> None:
        """Unloads the machine code."""
        self._functions.clear()
        while self._libraries:
            answer("machine code", driver.cuLibraryUnload(self._libraries.pop()))

    def _load(self, cubin: Cubin) -> None:
        what = f"kernel {cubin.name}"
        library = answer(what, driver.cuLibraryLoadData(cubin.code, None, None, 0, None, None, 0))
        self._libraries.append(library)
        kernel = answer(what, driver.cuLibraryGetKernel(library, cubin.entry.encode()))
        function = answer(what, driver.cuKernelGetFunction(kernel))
        if cubin.shared > _STATIC_SHARED:
            answer(what, driver.cuFuncSetAttribute(function, _SHARED, cubin.shared))
        self._cubins[cubin.name] = cubin
        self._functions[cubin.name] = function

    def _make_current(self) -> None:
        """A thread that has not used PyTorch on this device yet has no context, or another device's."""
        if int(answer("the CUDA context", driver.cuCtxGetCurrent())) != int(self._context):
            answer("the CUDA context", driver.cuCtxSetCurrent(self._context))


def _config(cubin: Cubin, grid: tuple[int, ...], stream: int) -> Any:
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = (*grid, 1, 1)[:3]
    config.blockDimX, config.blockDimY, config.blockDimZ = cubin.threads, 1, 1
    config.sharedMemBytes = cubin.shared
    config.hStream = stream
    config.attrs = [_AS_DEPENDENT] if cubin.dependent else []
    config.numAttrs = len(config.attrs)
    return config


def _as_dependent() -> Any:
    """Of a launch that may begin before the kernel before it in the stream, or in the graph captured from it, ends."""
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    return attribute


_AS_DEPENDENT = _as_dependent()


def answer(what: str, given: tuple[Any, ...]) -> Any:
    """The value of a call of the driver. Raises `KernelError` with the driver's words."""
    status, *values = given
    if status != driver.CUresult.CUDA_SUCCESS:
        text = driver.cuGetErrorString(status)[1]
        raise KernelError(f"{what}: {status.name}: {text.decode() if text else 'no description'}")
    return values[0] if values else None
