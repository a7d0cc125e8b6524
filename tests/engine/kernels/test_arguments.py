"""Launch arguments: what is refused before a GPU sees it, and the bytes that reach the driver."""

from __future__ import annotations

import ctypes

import pytest
import torch

from flame.engine.kernels.arguments import Arguments, check
from flame.engine.kernels.kernel import Cubin, TritonKernel

CPU = torch.device("cpu")
KERNEL = TritonKernel(
    "kernel",
    None,
    {"x": "*bf16", "y": "*i64", "n": "i32", "scale": "fp32"},
    {},
    unaligned=frozenset({"y"}),
    multiples_of_16=frozenset({"n"}),
)
X = torch.zeros(64, dtype=torch.bfloat16)
Y = torch.zeros(64, dtype=torch.int64)


def test_what_the_kernel_was_compiled_for_passes() -> None:
    check(KERNEL, (X, Y, 32, 0.5), CPU)
    check(KERNEL, (X[8:], Y[1:], 0, 1), CPU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[1:], Y, 32, 0.5), "argument x is not aligned to 16 bytes"),
        ((X.float(), Y, 32, 0.5), r"argument x is \*bf16, got torch.float32"),
        ((X.to("meta"), Y, 32, 0.5), "argument x is on meta, the launch on cpu"),
        ((X.data_ptr(), Y, 32, 0.5), "argument x is a tensor, got int"),
        ((X, Y, 33, 0.5), "argument n is 33, promised a multiple of 16"),
        ((X, Y, X, 0.5), "argument n is a number, got Tensor"),
    ],
)
def test_what_it_was_not_compiled_for_is_an_error(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(KERNEL, arguments, CPU)  # type: ignore[arg-type]


def test_values_lie_where_the_driver_looks() -> None:
    cubin = Cubin("kernel", "kernel", b"", 32, 0, ("*fp32", "bytes", "i64", "fp32", "i32"), hidden=2)
    x = torch.zeros(4)
    packed = Arguments(cubin, (x, b"abc\0d", -(2**40), 1.5, -7))
    addresses = (ctypes.c_void_p * 7).from_address(packed.addresses)

    def value(index: int, kind: type[ctypes._SimpleCData]) -> object:  # type: ignore[type-arg]
        return kind.from_address(addresses[index]).value

    assert value(0, ctypes.c_uint64) == x.data_ptr()
    assert ctypes.string_at(addresses[1], 5) == b"abc\0d"
    assert value(2, ctypes.c_int64) == -(2**40)
    assert value(3, ctypes.c_float) == 1.5
    assert value(4, ctypes.c_int32) == -7
    assert [value(index, ctypes.c_uint64) for index in (5, 6)] == [0, 0]


def test_too_few_arguments_are_an_error() -> None:
    with pytest.raises(AssertionError, match="kernel takes"):
        Arguments(Cubin("kernel", "kernel", b"", 32, 0, ("i32", "i32")), (1,))
