"""What a GPU kernel is before it is compiled, and after: plain values that name launches and fill artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


DEPENDENT = "DEPENDENT"
"""The constexpr that tells a Triton function whether it is launched as a dependent, which its kernel's `constants`
leave to the compiler (`flame.engine.kernels.dependent`)."""
DEPENDENTS_SINCE = 90
"""The first compute capability that has dependent launches."""


class KernelError(Exception):
    """A kernel that does not compile, load or launch; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class TritonKernel:
    """A Triton function in one configuration.

    `name` is unique among the kernels of a model and names its file. `signature` gives the type of every parameter
    that is passed at a launch, in order ("*bf16", "*fp32", "*i32", "*i64", "i32", "fp32"); `constants` every
    constexpr but DEPENDENT. Pointers have to be aligned to 16 bytes unless they are named in `unaligned`; integers
    named in `multiples_of_16` are promised to be such. `registers` is the most that a thread may take, where more than
    one program is to fit a multiprocessor.
    """

    name: str
    function: Any = field(repr=False)
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    registers: int | None = None
    unaligned: frozenset[str] = frozenset()
    multiples_of_16: frozenset[str] = frozenset()

    @property
    def dependent(self) -> bool:
        """Whether it may be launched as a dependent of the kernel before it."""
        return DEPENDENT in self.function.arg_names

    def all_constants(self, dependent: bool) -> dict[str, Any]:
        """Every constexpr, for launches as dependents or others."""
        return dict(self.constants) | ({DEPENDENT: dependent} if self.dependent else {})


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """An entry of a CUDA C++ source, compiled with `defines` as constants.

    `source` is the path of the `.cu` file, which may include the headers (`.h`, `.cuh`) beside it and those named in
    `headers`, paths of files elsewhere.
    `entry` is an `extern "C"` name. `signature` is as for Triton, and "bytes" for a structure passed by value.
    `threads` and dynamic shared memory (`shared`, bytes) belong to the configuration. `dependent` kernels may be
    launched as dependents of the kernel before them.
    """

    name: str
    source: str
    entry: str
    signature: Mapping[str, str]
    defines: Mapping[str, int]
    threads: int
    shared: int
    dependent: bool = False
    headers: tuple[str, ...] = ()


Kernel = TritonKernel | CudaKernel


@dataclass(frozen=True, slots=True)
class Cubin:
    """A compiled kernel: machine code for one architecture and what a launch of it needs.

    `hidden` counts the eight-byte parameters behind those of the signature, which the compiler added and a launch
    fills with zeros. A launch makes it a dependent of the kernel before it where the code is `dependent`.
    """

    name: str
    entry: str
    code: bytes = field(repr=False)
    threads: int
    shared: int
    signature: tuple[str, ...]
    hidden: int = 0
    dependent: bool = False


class Runtime(Protocol):
    """What launches kernels on one device."""

    device: torch.device

    def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: torch.Tensor | int | float | bytes) -> None:
        """Puts one launch on the current stream of `device`; arguments in the order of the signature.

        Tensors are passed as the address of their first element. Nothing is allocated, nothing is waited for.
        """
