"""Large arrays outside the Python heap: page-aligned, zeroed, on huge pages where the kernel grants them.

Alignment keeps a 64-byte row on one cache line and lets CUDA register the memory; huge pages keep random look-ups out
of the page tables. The memory goes back to the system when the last array over it is gone.
"""

from __future__ import annotations

import errno
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HUGE_PAGE = 2 * 2**20
_POPULATE_WRITE = 23
"""Linux's MADV_POPULATE_WRITE (5.14), which `mmap` has no name for yet."""


def allocate(shape: tuple[int, ...], dtype: DTypeLike, *, populate: bool = False) -> NDArray[Any]:
    """A new writable array of zeros that starts on a page.

    Pages are taken from the system when first written; with `populate` all are taken now, where the kernel can do
    that, so that no request pays for them.
    """
    kind = np.dtype(dtype)
    count = math.prod(shape)
    area = mmap.mmap(-1, max(1, count * kind.itemsize))
    if len(area) >= _HUGE_PAGE:
        area.madvise(mmap.MADV_HUGEPAGE)
    if populate:
        _populate(area)
    return np.frombuffer(area, kind, count).reshape(shape)


def _populate(area: mmap.mmap) -> None:
    try:
        area.madvise(_POPULATE_WRITE)
    except OSError as error:
        # An older kernel does not know the advice; the pages then come when they are written.
        if error.errno != errno.EINVAL:
            raise
