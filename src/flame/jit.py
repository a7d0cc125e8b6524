"""How kernels for the CPU that are written in Python are compiled.

A kernel is Python over flat numpy memory, compiled on first use and kept on disk. numba takes compiled code for valid
as long as the one file it came from is unchanged, but kernels call kernels of other files; so the code is kept in a
folder named by a digest of all files of the kernel's folder (and of `flame.layout`, whose numbers are compiled in).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import xxhash

from flame import layout

Function = TypeVar("Function", bound=Callable[..., Any])

Integer: TypeAlias = Any
"""An integer inside a kernel, where those of Python and of numpy are the same machine word."""


@functools.cache
def code_folder(source: Path) -> str:
    """Where compiled kernels of exactly this folder are kept; `NUMBA_CACHE_DIR` and `XDG_CACHE_HOME` are followed.

    Empty for a user without a home, and for code that lies in no folder: numba then looks for a place itself.
    """
    import numba

    if not source.is_absolute():
        return ""
    digest = xxhash.xxh3_64()
    for path in [*sorted(source.glob("*.py")), Path(__file__), Path(layout.__file__)]:
        digest.update(path.read_bytes())
    base = cast(Any, numba.config).CACHE_DIR or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "flame"
    )
    return os.path.join(base, f"{source.parent.name}-{digest.hexdigest()}") if os.path.isabs(base) else ""


def kernel(function: Function) -> Function:
    """`function` compiled by numba, without the interpreter lock, typed as it was written.

    Compiled without numba's reference counts, which cost an atomic operation per array and inner call; a kernel
    therefore allocates nothing and gets its scratch space from the caller.
    """
    return _compiled(function, nogil=True)


def short_kernel(function: Function) -> Function:
    """As `kernel`, but keeping the lock: for what takes less time than to queue for the lock again."""
    return _compiled(function, nogil=False)


def _compiled(function: Function, *, nogil: bool) -> Function:
    import numba

    njit, settings = cast(Any, numba.njit), cast(Any, numba.config)
    before = settings.CACHE_DIR
    settings.CACHE_DIR = code_folder(Path(function.__code__.co_filename).parent)
    try:
        compiled = njit(nogil=nogil, _nrt=False, cache=True)(function)
    except RuntimeError:  # no directory can hold compiled code: compile once per process instead
        compiled = njit(nogil=nogil, _nrt=False)(function)
    finally:
        settings.CACHE_DIR = before
    return cast(Function, compiled)
