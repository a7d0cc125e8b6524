"""Launch arguments as the driver takes them: an array of addresses of values."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flame.engine.kernels.kernel import Cubin, Kernel, TritonKernel

if TYPE_CHECKING:
    import torch

_SCALARS: dict[str, Any] = {
    "i32": ctypes.c_int32,
    "u32": ctypes.c_uint32,
    "i64": ctypes.c_int64,
    "u64": ctypes.c_uint64,
    "fp32": ctypes.c_float,
    "fp64": ctypes.c_double,
}

_SIZES = {"fp64": 8, "i64": 8, "u64": 8, "fp32": 4, "i32": 4, "u32": 4, "bf16": 2, "fp16": 2, "i16": 2, "u16": 2}
"""Bytes of what a pointer points to; one byte where it is not named."""


class Arguments:
    """The values of one launch and `addresses`, the array over them; a launch copies both before it returns."""

    def __init__(self, cubin: Cubin, arguments: Sequence[torch.Tensor | int | float | bytes]) -> None:
        assert len(arguments) == len(cubin.signature), f"{cubin.name} takes {cubin.signature}, got {len(arguments)}"
        hidden = [ctypes.c_uint64(0) for _ in range(cubin.hidden)]
        self._values = [_value(kind, argument) for kind, argument in zip(cubin.signature, arguments, strict=True)]
        self._values += hidden
        self._array = (ctypes.c_void_p * len(self._values))(*map(ctypes.addressof, self._values))

    @property
    def addresses(self) -> int:
        return ctypes.addressof(self._array)


def check(kernel: Kernel, arguments: Sequence[torch.Tensor | int | float | bytes], device: torch.device) -> None:
    """Asserts that arguments are what the kernel was compiled for: device, type and alignment."""
    multiples = kernel.multiples_of_16 if isinstance(kernel, TritonKernel) else frozenset()
    unaligned = kernel.unaligned if isinstance(kernel, TritonKernel) else frozenset()
    for (name, kind), argument in zip(kernel.signature.items(), arguments, strict=True):
        where = f"{kernel.name}: argument {name}"
        if kind.startswith("*"):
            _check_tensor(where, kind, argument, device, aligned=name not in unaligned)
        elif kind == "bytes":
            assert isinstance(argument, bytes), f"{where} is a structure, got {type(argument).__name__}"
        else:
            assert isinstance(argument, int | float), f"{where} is a number, got {type(argument).__name__}"
            assert name not in multiples or argument % 16 == 0, f"{where} is {argument}, promised a multiple of 16"


def _check_tensor(where: str, kind: str, argument: Any, device: torch.device, *, aligned: bool) -> None:
    assert hasattr(argument, "data_ptr"), f"{where} is a tensor, got {type(argument).__name__}"
    assert argument.device == device, f"{where} is on {argument.device}, the launch on {device}"
    assert argument.element_size() == _SIZES.get(kind[1:], 1), f"{where} is {kind}, got {argument.dtype}"
    assert not aligned or argument.data_ptr() % 16 == 0, f"{where} is not aligned to 16 bytes"


def _value(kind: str, argument: Any) -> Any:
    if kind.startswith("*"):
        return ctypes.c_uint64(argument.data_ptr())
    if kind == "bytes":
        return ctypes.create_string_buffer(argument, len(argument))
    return _SCALARS[kind](argument)
