"""Compiles kernels for one architecture, in a process of its own, and prints what each takes as a line of JSON.

    python compile_all.py CAPABILITY [FILE]

The kernels are those of all programs of `flame.engine.backends.fused`, or the ones that `kernels()` of the Python
file names. Equal kernels of several programs are compiled once. With `--list` nothing is compiled.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

import flame.engine.kernels
from flame.engine.backends.fused.compiling import compile_kernel
from flame.engine.backends.fused.precision import PRECISIONS
from flame.engine.backends.fused.programs import kernels_of
from flame.engine.kernels.kernel import CudaKernel, Kernel
from flame.engine.kernels.resources import resources
from flame.engine.presets import preset
from flame.engine.spec import HstuConfig, ModelSpec
from flame.schema import ItemTable

KERNELS = Path(flame.engine.kernels.__file__).parent


def of_file(path: str) -> Iterator[tuple[str, Kernel]]:
    for kernel in runpy.run_path(path)["kernels"]():
        yield Path(path).stem, kernel


def of_programs(capability: int) -> Iterator[tuple[str, Kernel]]:
    """Every kernel of every model, precision and choice of parts, with a label that says which."""
    for label, spec, precisions, choices in configurations(capability):
        for precision in precisions:
            for without in choices:
                for kernel in kernels_of(spec, PRECISIONS[precision], frozenset(without), capability).values():
                    yield " ".join((label, precision, *(f"-{part}" for part in without))), kernel


WITHOUT = ((), ("stack",), ("stack", "feed-forward"))


def configurations(capability: int) -> Iterator[tuple[str, ModelSpec, Sequence[str], Sequence[Sequence[str]]]]:
    """All of them for 9.0, where this project measures; for the others those that a user gets by default."""
    everything = capability == 90
    precisions = ("bf16", "fp16", "fp32") if everything else ("bf16",)
    parts = WITHOUT if everything else ((),)
    yield "flame-base", preset("flame-base"), precisions, parts
    yield "hstu-512", hstu(512, layers=5, heads=4, head=128), precisions, parts
    yield "climber-512", climber(512, heads=8), precisions if everything else ("fp32",), parts
    if everything:
        yield "climber-1024", climber(1024, heads=16), ("bf16",), parts
        for name in ("tiny-climber", "tiny-climber-bias", "tiny-climber-causal", "tiny-climber-own-wiring"):
            yield name, preset(name), ("bf16",), parts
        for name in ("tiny-hstu", "tiny-hstu-bidirectional"):
            yield name, preset(name), ("bf16",), parts


def climber(dim: int, heads: int) -> ModelSpec:
    spec = preset("flame-base")
    sizes = msgspec.structs.replace(spec.climber, dim=dim, heads=heads, ffn=4 * dim)
    return msgspec.structs.replace(spec, climber=sizes, input=with_item_dim(spec, dim))


def hstu(dim: int, layers: int, heads: int, head: int) -> ModelSpec:
    spec = preset("flame-base")
    sizes = HstuConfig(dim=dim, layers=layers, heads=heads, attention_dim=head, linear_dim=head)
    one = msgspec.structs.replace(with_item_dim(spec, dim), sequences=preset("tiny-hstu").input.sequences)
    return msgspec.structs.replace(spec, climber=None, hstu=sizes, input=one)


def with_item_dim(spec: ModelSpec, dim: int) -> Any:
    return msgspec.structs.replace(spec.input, item_id=ItemTable(vocabulary=100_000, dim=dim))


def operation(kernel: Kernel) -> str:
    """The folder of `flame.engine.kernels` that the kernel's source lies in."""
    path = source(kernel)
    return path.relative_to(KERNELS).parts[0] if path.is_relative_to(KERNELS) else path.parent.name


def source(kernel: Kernel) -> Path:
    return Path(kernel.source if isinstance(kernel, CudaKernel) else kernel.function.fn.__code__.co_filename)


def function(kernel: Kernel) -> str:
    return kernel.entry if isinstance(kernel, CudaKernel) else kernel.function.fn.__name__


def identity(kernel: Kernel) -> str:
    """Equal for kernels that compile to the same code."""
    if isinstance(kernel, CudaKernel):
        return repr((kernel.source, kernel.entry, sorted(kernel.defines.items()), kernel.threads, kernel.shared))
    constants = sorted((name, repr(value)) for name, value in kernel.constants.items())
    options = (kernel.warps, kernel.stages, sorted(kernel.unaligned), sorted(kernel.multiples_of_16))
    return repr((source(kernel), function(kernel), sorted(kernel.signature.items()), constants, options))


def measured(kernel: Kernel, capability: int) -> dict[str, Any]:
    """What it takes, or why it does not compile."""
    started = time.monotonic()
    try:
        found = resources(compile_kernel(kernel, capability), capability)._asdict()
    except Exception as error:  # whatever a compiler raises
        found = {"error": f"{type(error).__name__}: {error}"[:2000]}
    return found | {"seconds": time.monotonic() - started}


def main(capability: int, path: str | None, compiles: bool) -> None:
    kernels: dict[str, tuple[str, Kernel]] = {}
    for label, kernel in of_file(path) if path else of_programs(capability):
        kernels.setdefault(identity(kernel), (label, kernel))
    for label, kernel in kernels.values():
        line = {"label": label, "name": kernel.name, "operation": operation(kernel), "function": function(kernel)}
        print(json.dumps(line | (measured(kernel, capability) if compiles else {})), flush=True)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--list"]
    main(int(words[0]), words[1] if len(words) > 1 else None, "--list" not in sys.argv)
