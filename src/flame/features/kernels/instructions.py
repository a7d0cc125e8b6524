"""The few machine instructions that kernels need and numba does not offer: prefetch, fences, atomic words.

Each takes a flat array and an index into it, so that kernels stay free of pointers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_intrinsic = cast(Any, intrinsic)
_tools = cast(Any, cgutils)

yield_core = types.ExternalFunction("sched_yield", types.intc())
"""Lets another thread run: called where a kernel waits for one that may have been preempted."""


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels can call and whose machine code `function` describes to numba."""
    return cast(Callable[..., Any], _intrinsic(function))


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The address of `array[index]`, for an intrinsic whose first arguments are a flat array and an index."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return _tools.get_item_pointer(context, builder, signature.args[0], array, [arguments[1]])


@instruction
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """`prefetch(array, index)`: asks for the cache line of `array[index]`, to be read soon."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = _tools.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.bitcast(_pointer(context, builder, signature, arguments), byte)
        builder.call(function, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), build


@instruction
def fence(typing_context: Any) -> Any:
    """`fence()`: no read or write moves across this point, neither in the compiler nor in the processor."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("acq_rel")
        return context.get_dummy_value()

    return types.void(), build


@instruction
def load_acquire(typing_context: Any, array: Any, index: Any) -> Any:
    """`load_acquire(array, index)`: reads an int32 before everything that follows."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, arguments), "acquire", 4)

    return types.int32(array, types.intp), build


@instruction
def store_release(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """`store_release(array, index, value)`: writes an int32 after everything that precedes."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _pointer(context, builder, signature, arguments), "release", 4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int32), build


@instruction
def compare_and_swap(typing_context: Any, array: Any, index: Any, old: Any, new: Any) -> Any:
    """`compare_and_swap(array, index, old, new)`: writes an int32 if it is `old`; says whether it was."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _pointer(context, builder, signature, arguments)
        result = builder.cmpxchg(address, arguments[2], arguments[3], "acq_rel", "monotonic")
        return builder.extract_value(result, 1)

    return types.boolean(array, types.intp, types.int32, types.int32), build
