"""Where the CUDA sources lie, and what a block may have of shared memory."""

from __future__ import annotations

from pathlib import Path

from flame.engine.kernels import climber_stack

SHARED = 227 * 1024
"""Bytes that a block may have on compute capability 9.0."""
STATIC = 256
"""Of these, what barriers take at most."""
GROUP_THREADS = 128

_FOLDER = Path(__file__).parent / "cuda"
_STACK = Path(climber_stack.__file__).parent / "cuda"


def source(name: str) -> str:
    """The path of a `.cu` file of this package."""
    return str(_FOLDER / name)


def headers() -> tuple[str, ...]:
    """What these sources share with those of the stack."""
    return tuple(str(_STACK / name) for name in ("ptx.cuh", "wgmma.cuh"))
