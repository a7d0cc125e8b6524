"""Compiles the kernels of a model ahead of time, in processes of their own.

Compilers are slow, hold Python's lock, and may crash; children use all cores, and a crash of
one leaves the process that serves alone. Run as a module, this file is such a child.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from flame.engine.backends.fused import cubins
from flame.engine.backends.fused.precision import PRECISIONS
from flame.engine.backends.fused.programs import kernels_of
from flame.engine.kernels.kernel import Cubin, CudaKernel, Kernel
from flame.engine.machine import usable_cores
from flame.engine.spec import ModelSpec
from flame.errors import BackendUnavailable

_MOST_TOLD = 4000


class Order(msgspec.Struct, frozen=True):
    """What to compile: the kernels of this program, or those of its kernels that are named."""

    spec: ModelSpec
    precision: str
    without: tuple[str, ...]
    capability: int
    names: tuple[str, ...] = ()

    def kernels(self) -> list[Kernel]:
        """The kernels in question."""
        named = kernels_of(self.spec, PRECISIONS[self.precision], frozenset(self.without), self.capability)
        return [named[name] for name in self.names or named]


def compile_all(order: Order, folder: Path) -> None:
    """Writes all kernels of `order` into `folder`. Raises `BackendUnavailable` with what a compiler said."""
    names = [kernel.name for kernel in order.kernels()]
    count = min(len(names), usable_cores())
    with tempfile.TemporaryDirectory(prefix="flame-kernels-") as work:
        shares = [msgspec.structs.replace(order, names=tuple(names[part::count])) for part in range(count)]
        parts = [Path(work, str(part)) for part in range(count)]
        children: list[_Child] = []
        try:
            for share, part in zip(shares, parts, strict=True):
                children.append(_Child(share, part))
            for child in children:
                child.finish()
        finally:
            for child in children:
                child.stop()
        cubins.write(folder, (cubin for part in parts for cubin in cubins.read(part)))


def compile_kernel(kernel: Kernel, capability: int) -> Cubin:
    """Machine code of a kernel of either language."""
    if isinstance(kernel, CudaKernel):
        from flame.engine.kernels.nvrtc import compile_cuda

        return compile_cuda(kernel, capability)
    from flame.engine.kernels.triton_compiler import compile_triton

    return compile_triton(kernel, capability)


class _Child:
    """A process that compiles one share into the new `folder`."""

    def __init__(self, order: Order, folder: Path) -> None:
        folder.mkdir()
        self._errors = folder / "errors"
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["TRITON_CACHE_DIR"] = str(folder / "cache")
        command = [sys.executable, "-m", "flame.engine.backends.fused.compiling", str(folder)]
        with self._errors.open("wb") as errors, (folder / "order").open("w+b") as order_file:
            order_file.write(msgspec.json.encode(order))
            order_file.seek(0)
            self._process = subprocess.Popen(
                command, env=environment, stdin=order_file, stdout=subprocess.DEVNULL, stderr=errors
            )

    def finish(self) -> None:
        """Waits. Raises `BackendUnavailable` when the child failed."""
        if status := self._process.wait():
            said = self._errors.read_text(errors="replace").strip()[-_MOST_TOLD:]
            raise BackendUnavailable(f"fused could not be built: a compiler ended with status {status}:\n{said}")

    def stop(self) -> None:
        """Ends a child that still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Compiles what standard input orders into the folder that the command line names."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    folder = Path(sys.argv[1])
    cubins.write(folder, [compile_kernel(kernel, order.capability) for kernel in order.kernels()])


if __name__ == "__main__":
    main()
