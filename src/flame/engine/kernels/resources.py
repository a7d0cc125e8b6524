"""What a compiled kernel takes of a multiprocessor, and its instructions, read from its machine code without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton

from flame.engine.kernels.kernel import Cubin, KernelError

_KIB = 1024
_SHARED_LIMITS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_]*)", re.MULTILINE)
_DUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Resources(NamedTuple):
    """Of one kernel.

    `registers` is per thread. `stack` is bytes of local memory per thread: registers that were spilled, and arrays
    that did not fit registers. `shared` is bytes per block, dynamic and static.
    """

    registers: int
    stack: int
    shared: int


def resources(cubin: Cubin, capability: int) -> Resources:
    """Reads `cubin`, compiled for `capability`, with the cuobjdump that comes with Triton. Raises `KernelError`."""
    text = _dump(cubin, "-res-usage")
    usage = text.partition(f"Function {cubin.entry}:")[2].partition("Function ")[0]
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    if len(found) != 4:
        raise KernelError(f"kernel {cubin.name}: cuobjdump does not say what {cubin.entry} takes, only {text!r}")
    # From 9.0 on the driver keeps a KiB in every block, which is counted here and which no limit includes.
    static = max(0, found["SHARED"] - (_KIB if capability >= 90 else 0))
    return Resources(found["REG"], found["STACK"] + found["LOCAL"], cubin.shared + static)


def shared_limit(capability: int) -> int:
    """The most bytes of shared memory that one block may have on compute capability `capability` (90 for 9.0).

    From the technical specifications in the CUDA programming guide. Raises `KernelError` for one it does not list.
    """
    if capability not in _SHARED_LIMITS:
        raise KernelError(f"no limit is known for compute capability {capability}, only for {list(_SHARED_LIMITS)}")
    return _SHARED_LIMITS[capability] * _KIB


def instructions(cubin: Cubin) -> list[str]:
    """The names of its instructions, without what follows a point, in the order in which they lie in memory."""
    return _INSTRUCTION.findall(_dump(cubin, "-sass"))


def _dump(cubin: Cubin, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin.code)
        file.flush()
        done = subprocess.run([str(_DUMP), what, file.name], capture_output=True, text=True)
    if done.returncode:
        raise KernelError(f"kernel {cubin.name}: cuobjdump cannot read its machine code: {done.stderr.strip()}")
    return done.stdout
