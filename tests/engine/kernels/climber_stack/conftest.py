"""Stacks under test: the kernels on an emulated GPU, built by a C++ compiler, and on a real one where there is one."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flame.engine.kernels.climber_stack import ClimberStack, StackHeader, StackSizes, Variant
from flame.engine.kernels.climber_stack.reference import rank
from flame.engine.kernels.kernel import CudaKernel, Kernel, Runtime
from tests import compile_once
from tests.engine.kernels.cubin_cache import cached

EMULATOR = Path(__file__).with_name("emulator")
HEADER = StackHeader(words=11, scenario=3, candidates=5, lengths=7)
SIZES = StackSizes(layers=2, blocks=2, heads=3, dim=96, ffn=384, scenarios=3)
FLAGS = ("-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off", "-pthread", "-fvisibility=hidden")


class Emulator:
    """Runs CUDA C++ kernels on the CPU: every CTA a thread, every CUDA thread a coroutine."""

    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libraries: dict[tuple[str, tuple[tuple[str, int], ...]], ctypes.CDLL] = {}

    def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: Any) -> None:
        assert isinstance(kernel, CudaKernel)
        key = (kernel.name, tuple(kernel.defines.items()))
        if key not in self._libraries:
            self._libraries[key] = self._built(kernel, self._folder / str(len(self._libraries)))
        threads = ctypes.c_uint(kernel.threads)
        self._libraries[key].emulate(ctypes.c_char_p(arguments[0]), ctypes.c_uint(grid[0]), threads)

    def _built(self, kernel: CudaKernel, folder: Path) -> ctypes.CDLL:
        """The emulator's ptx.cuh takes the place of the kernels' own, all else is theirs."""
        shutil.copytree(Path(kernel.source).parent, folder)
        for header in kernel.headers:
            shutil.copy(header, folder)
        shutil.copytree(EMULATOR, folder, dirs_exist_ok=True)
        names = {"KERNEL": f'"{Path(kernel.source).name}"', "ENTRY": kernel.entry, **kernel.defines}
        macros = [f"-D{name}={value}" for name, value in names.items()]
        library = folder / "kernel.so"
        command = [compile_once.__file__, *FLAGS, *macros, str(folder / "main.cc"), "-o", str(library)]
        environment = os.environ | {compile_once.COMPILER: "g++"}
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=environment)
        return ctypes.CDLL(str(library))


class Compiled:
    """Launches on the GPU; compiles a kernel when it is launched for the first time."""

    def __init__(self, cubins: Path) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._folder = cubins
        self._cubins: dict[tuple[str, tuple[tuple[str, int], ...]], Any] = {}

    def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: Any) -> None:
        from flame.engine.kernels.driver import Driver

        assert isinstance(kernel, CudaKernel)
        key = (kernel.name, tuple(kernel.defines.items()))
        if key not in self._cubins:
            self._cubins[key] = Driver([cached(kernel, 90, self._folder)], self.device)
        self._cubins[key].launch(kernel, grid, *arguments)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if shutil.which("g++") is None:
        pytest.skip("the emulated GPU is built by g++")
    return Emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def gpu(cubins: Path) -> Iterator[Compiled]:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernels are for compute capability 9.0")
    yield Compiled(cubins)
    torch.cuda.synchronize()


@pytest.fixture(params=["emulated", pytest.param("compiled", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Runtime:
    """What launches the kernels: the emulated GPU, then a real one."""
    runtime: Runtime = request.getfixturevalue("emulator" if request.param == "emulated" else "gpu")
    return runtime


def random_weights(sizes: StackSizes, seed: int = 0, gain: float = 1.0) -> dict[str, Tensor]:
    """fp32 tensors of `layers.*`, matrices rounded to bf16; `gain` scales the projections."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * (2 * torch.rand(shape, generator=generator) - 1)

    weights: dict[str, Tensor] = {}
    products = {"qkv": (3 * sizes.dim, sizes.dim), "ffn_in": (sizes.ffn, sizes.dim), "ffn_out": (sizes.dim, sizes.ffn)}
    for layer in range(sizes.layers):
        prefix = f"layers.{layer}."
        for name, (outputs, inputs) in products.items():
            scale = inputs**-0.5 * (gain if name == "qkv" else 1)
            weights[f"{prefix}{name}.weight"] = draw(sizes.blocks, outputs, inputs, scale=scale).bfloat16().float()
            weights[f"{prefix}{name}.bias"] = draw(sizes.blocks, outputs, scale=inputs**-0.5)
        weights[f"{prefix}norm.weight"] = 1 + draw(sizes.blocks, sizes.dim, scale=0.2)
        weights[f"{prefix}norm.bias"] = draw(sizes.blocks, sizes.dim, scale=0.2)
        weights[f"{prefix}log_temperature"] = 1.7 + draw(sizes.blocks, sizes.scenarios, scale=0.4)
    return weights


@dataclass
class Bed:
    """One launch's memory around a stack: rows that are not live, and states before they are written, are NaN."""

    runtime: Runtime
    lengths: Sequence[Sequence[int]]
    counts: Sequence[int]
    events: int = 128
    candidates: int = 64
    capacity: int = 0
    sizes: StackSizes = SIZES
    scale: float = 1.0
    gain: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        device = self.runtime.device
        self.users = len(self.counts)
        weights = random_weights(self.sizes, gain=self.gain)
        self.weights = {name: tensor.to(device) for name, tensor in weights.items()}
        self.stack = ClimberStack(self.sizes, HEADER, self.runtime, self.weights)
        self.capacity = self.capacity or self.events
        self.x = torch.full(self.shape, float("nan"), dtype=torch.bfloat16)
        for user in range(self.users):
            # A user's rows do not depend on the others, so that a test can leave some out.
            self._fill(user, torch.Generator().manual_seed(1000 * self.seed + user))
        self.x = self.x.to(device)
        self.scenarios = [user % self.sizes.scenarios for user in range(self.users)]
        self.scratch = self.stack.scratch(self.users)
        self.new_states()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.users, self.sizes.blocks, self.events + self.candidates, self.sizes.dim)

    def _fill(self, user: int, generator: torch.Generator) -> None:
        rows = self.scale * torch.randn((self.sizes.blocks, 2, 512, self.sizes.dim), generator=generator)
        for block, length in enumerate(self.lengths[user]):
            self.x[user, block, :length] = rows[block, 0, :length]
        count = self.counts[user]
        self.x[user, :, self.events : self.events + count] = rows[:, 1, :count]

    def new_states(self) -> None:
        """States of NaN, with lengths."""
        words = 64 + self.stack.state_bytes(self.capacity) // 4
        memory = torch.full((self.users, words), -1, dtype=torch.int32)
        memory[:, 0] = self.capacity
        memory[:, 1 : 1 + self.sizes.blocks] = torch.tensor(self.lengths, dtype=torch.int32)
        self.memory = memory.to(self.runtime.device)
        self.states = torch.tensor([state.data_ptr() for state in self.memory]).to(self.runtime.device)

    def launch(self, mode: Any = "rank", variant: Variant | None = None, x: Tensor | None = None) -> list[Tensor]:
        """Live candidate rows per user after one launch, `[blocks, count, dim]` each."""
        x = self.x.clone() if x is None else x
        self.put(mode, variant, x, self.header(mode))
        return self.live(x)

    def put(self, mode: Any, variant: Variant | None, x: Tensor, header: Tensor) -> None:
        """One launch, without a look at what it gives."""
        sizes = (self.users, self.events, self.candidates)
        self.stack.launch(mode, x, header, self.states, self.scratch, *sizes, variant)

    def header(self, mode: Any = "rank") -> Tensor:
        """The packed header; what the kernels should not read is large."""
        words = torch.full((self.users, HEADER.words), 1 << 20, dtype=torch.int32)
        words[:, HEADER.scenario] = torch.tensor(self.scenarios, dtype=torch.int32)
        words[:, HEADER.candidates] = torch.tensor(self.counts, dtype=torch.int32)
        if mode != "score":
            lengths = slice(HEADER.lengths, HEADER.lengths + self.sizes.blocks)
            words[:, lengths] = torch.tensor(self.lengths, dtype=torch.int32)
        return words.to(self.runtime.device)

    def live(self, x: Tensor) -> list[Tensor]:
        return [x[user, :, self.events : self.events + count].clone() for user, count in enumerate(self.counts)]

    def expected(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The same by the reference, computed in `dtype`."""
        x = self.x.to(dtype)
        weights = {name: tensor.to(dtype) for name, tensor in self.weights.items()}
        return self.live(rank(self.sizes, weights, x, self.events, self.lengths, self.counts, self.scenarios))


MakeBed = Callable[..., Bed]


@pytest.fixture
def make_bed(machine: Runtime) -> MakeBed:
    """`Bed` on the machine under test."""

    def make(lengths: Sequence[Sequence[int]], counts: Sequence[int], **rest: Any) -> Bed:
        return Bed(machine, lengths, counts, **rest)

    return make


@pytest.fixture
def make_fresh_bed(emulator: Emulator, tmp_path: Path) -> MakeBed:
    """`Bed` on an emulated GPU that has no kernels yet, so that it builds those of the moment."""
    (tmp_path / "emulator").mkdir()
    fresh = type(emulator)(tmp_path / "emulator")

    def make(lengths: Sequence[Sequence[int]], counts: Sequence[int], **rest: Any) -> Bed:
        return Bed(fresh, lengths, counts, **rest)

    return make


@pytest.fixture
def make_gpu_bed(gpu: Compiled) -> MakeBed:
    """`Bed` on a real GPU."""

    def make(lengths: Sequence[Sequence[int]], counts: Sequence[int], **rest: Any) -> Bed:
        return Bed(gpu, lengths, counts, **rest)

    return make


@pytest.fixture
def stack_weights() -> Callable[..., dict[str, Tensor]]:
    """Random weights of a stack: fp32, matrices as bf16 holds them."""
    return random_weights
