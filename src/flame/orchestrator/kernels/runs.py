"""Many copies as one call."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from flame.jit import short_kernel

_memcpy = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))


@short_kernel
def copy_runs(runs: NDArray[np.int64]) -> None:
    """Copies run after run; `runs` `[3 * n]` holds target address, source address and bytes of each.

    Nothing is checked: the caller vouches for the memory, and keeps it alive.
    """
    for at in range(0, len(runs), 3):
        _memcpy(runs[at], runs[at + 1], runs[at + 2])
