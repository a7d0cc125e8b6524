"""The C allocator of a benchmark: memory that was given back stays with the process.

PyTorch takes the results of large operations from `malloc`, and glibc hands them to the system when they are freed. A
model with a dense mask then touches new pages in every launch: on a small machine that doubled the time of `eager` and
would have flattered every engine that allocates nothing. A comparison of engines is about their work, so the
benchmark lets no variant pay for it.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_TOP_PAD = 256 * 2**20


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, for the rest of the process; False for an allocator that cannot be told."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _TOP_PAD))
    return all(mallopt(name, value) == 1 for name, value in settings)
