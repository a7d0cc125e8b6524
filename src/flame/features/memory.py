"""Large arrays outside the Python heap: page-aligned, zeroed, on huge pages where the kernel grants them.

Alignment keeps a 64-byte row on one cache line and lets CUDA register the memory; huge pages keep random look-ups out
of the page tables. The memory goes back to the system when the last array over it is gone.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HUGE_PAGE = 2 * 2**20


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A new writable array of zeros that starts on a page; pages are taken from the system when first written."""
    kind = np.dtype(dtype)
    count = math.prod(shape)
    area = mmap.mmap(-1, max(1, count * kind.itemsize))
    if len(area) >= _HUGE_PAGE:
        area.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(area, kind, count).reshape(shape)
