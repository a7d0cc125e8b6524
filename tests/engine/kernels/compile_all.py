"""Compiles kernels for one architecture, in a process of its own, and prints what each takes as a line of JSON.

    python compile_all.py CAPABILITY [FILE] [--share PART/PARTS] [--list]

The kernels are those of all programs of `flame.engine.backends.fused`, or the ones that `kernels()` of the Python
file names. Equal kernels of several programs are compiled once. With `--list` nothing is compiled.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

import flame.engine.kernels
from flame.engine.backends.fused.compiling import compile_kernel
from flame.engine.backends.fused.precision import PRECISIONS
from flame.engine.backends.fused.programs import kernels_of
from flame.engine.kernels.kernel import Cubin, CudaKernel, Kernel
from flame.engine.kernels.nvrtc import compile_with_log
from flame.engine.kernels.resources import instructions, resources
from flame.engine.presets import preset
from flame.engine.spec import ModelSpec
from flame.schema import ItemTable

KERNELS = Path(flame.engine.kernels.__file__).parent
SERIAL = "Performance Loss"
"""What the compiler says of products of warpgroups that it cannot let overlap."""
TAKES_TICKETS = "climber_stack"
"""Before it waits: its order has to be that of its CTAs' places."""


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


BOTH = ("bf16", "fp32")
"""A kernel in fp16 has the tiles and the products of the one in bf16: it takes the same shared memory and no stack."""
ALL = (*BOTH, "fp16")
"""Where bf16 has kernels of its own (`climber_stack`, `climber_head`), fp16 is what the others run in."""
PARTS = (("stack",), ("stack", "feed-forward"))
TINY = (
    "tiny-climber",
    "tiny-climber-bias",
    "tiny-climber-causal",
    "tiny-climber-own-wiring",
    "tiny-climber-appendable",
)
TINY_HSTU = ("tiny-hstu", "tiny-hstu-bidirectional", "tiny-hstu-appendable")

Configuration = tuple[str, ModelSpec, Sequence[str], Sequence[Sequence[str]]]


def configurations(capability: int) -> Iterator[Configuration]:
    """Models, their precisions and the parts they do without: all for 9.0, where this project measures.

    For the others what a user gets by default and what differs most from it, so that the gate stays quick.
    """
    home = capability == 90
    yield "flame-base", preset("flame-base"), ALL if home else ("bf16",), ((),)
    yield "hstu-1k", preset("hstu-1k"), BOTH if home else ("bf16",), ((),)
    yield "climber-512", climber(512, heads=8), ("fp32",) if home else ("bf16",), ((),)
    yield "tiny-climber-bias", preset("tiny-climber-bias"), ("bf16",), ((),)
    if home:
        yield from only_at_home()


def only_at_home() -> Iterator[Configuration]:
    """What is compiled for 9.0 alone.

    `climber-1024` has the kernels and the tiles that `climber-512` has in bf16, with wider rows.
    """
    yield "flame-base", preset("flame-base"), BOTH, PARTS
    yield "climber-1024", climber(1024, heads=16), ("bf16",), ((),)
    for name in (*TINY, *TINY_HSTU):
        yield name, preset(name), ("bf16",), ((),)


def climber(dim: int, heads: int) -> ModelSpec:
    """`flame-base` in a size of usual transformers."""
    spec = preset("flame-base")
    sizes = msgspec.structs.replace(spec.climber, dim=dim, heads=heads, ffn=4 * dim)
    table = ItemTable(vocabulary=100_000, dim=dim)
    return msgspec.structs.replace(spec, climber=sizes, input=msgspec.structs.replace(spec.input, item_id=table))


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
    options = (kernel.warps, kernel.stages, kernel.registers, sorted(kernel.unaligned), sorted(kernel.multiples_of_16))
    return repr((source(kernel), function(kernel), sorted(kernel.signature.items()), constants, options))


def measured(kernel: Kernel, capability: int) -> dict[str, Any]:
    """What it takes, and whether it waits as a dependent must, or why it does not compile."""
    started = time.monotonic()
    try:
        cubin, log = compiled(kernel, capability)
        found = resources(cubin, capability)._asdict() | {"threads": cubin.threads, "dependent": cubin.dependent}
        found["serial"] = SERIAL in log
        if cubin.dependent:
            found["waits"] = waits(cubin, operation(kernel) == TAKES_TICKETS)
    except Exception as error:  # whatever a compiler raises
        found = {"error": f"{type(error).__name__}: {error}"[:2000]}
    return found | {"seconds": time.monotonic() - started}


def compiled(kernel: Kernel, capability: int) -> tuple[Cubin, str]:
    """Machine code, and what the compiler of CUDA C++ said; Triton says nothing."""
    if isinstance(kernel, CudaKernel):
        return compile_with_log(kernel, capability)
    return compile_kernel(kernel, capability), ""


def waits(cubin: Cubin, takes_tickets: bool) -> bool:
    """Whether the code waits for the kernel before it writes anything (but takes a ticket) and before it ends."""
    found = instructions(cubin)
    late = {"EXIT"} | (set() if takes_tickets else {"ST", "STG", "RED", "REDG", "ATOM", "ATOMG"})
    return "ACQBULK" in found[: min(found.index(name) for name in late if name in found)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("capability", type=int)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--share", default="1/1")
    options = parser.parse_args()
    kernels: dict[str, tuple[str, Kernel]] = {}
    for label, kernel in of_file(options.file) if options.file else of_programs(options.capability):
        kernels.setdefault(identity(kernel), (label, kernel))
    part, parts = map(int, options.share.split("/"))
    for label, kernel in list(kernels.values())[part - 1 :: parts]:
        line = {"label": label, "name": kernel.name, "operation": operation(kernel), "function": function(kernel)}
        line |= {"file": source(kernel).name} | ({} if options.list else measured(kernel, options.capability))
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
