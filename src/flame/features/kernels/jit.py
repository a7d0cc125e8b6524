"""How the feature side compiles its kernels.

A kernel is Python over flat numpy memory, compiled on first use and kept on disk. numba takes compiled code for valid
as long as the one file it came from is unchanged, but kernels call kernels of other files; so the code is kept in a
folder named by a digest of this whole package (and of `flame.layout`, whose numbers are compiled in).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numba
import xxhash

from flame import layout

Function = TypeVar("Function", bound=Callable[..., Any])

Integer: TypeAlias = Any
"""An integer inside a kernel, where those of Python and of numpy are the same machine word."""

_njit = cast(Any, numba.njit)
_settings = cast(Any, numba.config)


def _code_folder() -> str:
    """Where compiled kernels of exactly this source are kept; `NUMBA_CACHE_DIR` and `XDG_CACHE_HOME` are followed.

    Empty for a user without a home: numba then looks for a place itself.
    """
    digest = xxhash.xxh3_64()
    for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(layout.__file__)]:
        digest.update(path.read_bytes())
    base = _settings.CACHE_DIR or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "flame"
    )
    return os.path.join(base, f"features-{digest.hexdigest()}") if os.path.isabs(base) else ""


_CODE_FOLDER = _code_folder()


def kernel(function: Function) -> Function:
    """`function` compiled by numba, without the interpreter lock, typed as it was written.

    Compiled without numba's reference counts, which cost an atomic operation per array and inner call; a kernel
    therefore allocates nothing and gets its scratch space from the caller.
    """
    before = _settings.CACHE_DIR
    _settings.CACHE_DIR = _CODE_FOLDER
    try:
        compiled = _njit(nogil=True, _nrt=False, cache=True)(function)
    except RuntimeError:  # no directory can hold compiled code: compile once per process instead
        compiled = _njit(nogil=True, _nrt=False)(function)
    finally:
        _settings.CACHE_DIR = before
    return cast(Function, compiled)
