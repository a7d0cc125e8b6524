"""Large arrays: zeroed, aligned, and taken from the system when asked."""

from __future__ import annotations

import errno
import mmap
import platform
import resource

import numpy as np
import pytest

from flame.features import memory


@pytest.mark.parametrize("populate", [False, True])
@pytest.mark.parametrize("shape", [(0,), (1,), (1000, 3), (1 << 20, 4)])
def test_an_array_is_zero_writable_and_starts_on_a_page(shape: tuple[int, ...], populate: bool) -> None:
    array = memory.allocate(shape, np.int32, populate=populate)
    assert array.shape == shape
    assert not array.any()
    assert array.ctypes.data % mmap.PAGESIZE == 0
    array[...] = 7
    assert (array == 7).all()


def test_populated_pages_cost_no_fault_later() -> None:
    array = memory.allocate((4 << 20,), np.int32, populate=True)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array[:: mmap.PAGESIZE // 4] = 1
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    if tuple(map(int, platform.release().split(".")[:2])) < (5, 14):
        pytest.skip("this kernel does not know MADV_POPULATE_WRITE")
    assert taken < 100


class OldKernel:
    """A mapping whose kernel gives the same error to every advice."""

    def __init__(self, number: int) -> None:
        self._number = number

    def madvise(self, advice: int) -> None:
        raise OSError(self._number, "no")


def test_a_kernel_without_the_advice_is_no_error_and_no_memory_is() -> None:
    memory._populate(OldKernel(errno.EINVAL))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="no"):
        memory._populate(OldKernel(errno.ENOMEM))  # type: ignore[arg-type]
