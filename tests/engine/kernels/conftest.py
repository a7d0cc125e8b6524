"""What tests of GPU kernels share: each runs in Triton's interpreter, and compiled where there is a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flame.engine.backends.fused.precision import PRECISIONS, Precision
from flame.engine.kernels.kernel import Kernel, Runtime
from tests.engine.kernels.cubin_cache import GIVEN, cached

NanFilled = Callable[..., torch.Tensor]
RandomLengths = Callable[..., torch.Tensor]

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random tensors in every run of a test: what fails can be looked at again."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled kernels are kept: the folder given, or one that the processes of this run share."""
    folder = tmp_path_factory.getbasetemp()
    shared = (folder.parent if folder.name.startswith("popen") else folder) / "cubins"
    return Path(os.environ.get(GIVEN) or shared)


@pytest.fixture(params=["interpreted", pytest.param("compiled", marks=pytest.mark.gpu)])
def runtime(request: pytest.FixtureRequest, cubins: Path) -> Iterator[Runtime]:
    """What launches kernels: Triton's interpreter on the CPU, then the compiled kernels on the GPU."""
    if request.param == "interpreted":
        yield _interpreted()
        return
    compiling = Compiling(cubins)
    yield compiling
    compiling.close()


class Compiling:
    """Launches on the GPU; compiles a kernel when it is launched for the first time."""

    def __init__(self, cubins: Path) -> None:
        self._cubins = cubins
        major, minor = torch.cuda.get_device_capability()
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._capability = 10 * major + minor
        self._drivers: list[tuple[Kernel, Any]] = []

    def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: Any) -> None:
        known = next((driver for other, driver in self._drivers if other == kernel), None)
        (known or self._loaded(kernel)).launch(kernel, grid, *arguments)

    def close(self) -> None:
        torch.cuda.synchronize()
        for _, driver in self._drivers:
            driver.close()

    def _loaded(self, kernel: Kernel) -> Any:
        from flame.engine.kernels.driver import Driver

        self._drivers.append((kernel, Driver([cached(kernel, self._capability, self._cubins)], self.device)))
        return self._drivers[-1][1]


def _interpreted() -> Runtime:
    if not INTERPRETING:
        pytest.skip("this process compiles kernels for its GPU; Triton's interpreter needs TRITON_INTERPRET=1")
    from flame.engine.kernels.interpreter import Interpreter

    return Interpreter()


@pytest.fixture(params=["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.gpu)])
def precision(request: pytest.FixtureRequest) -> Precision:
    """Each precision in turn; the interpreter's bf16 is wrong, so that one needs a GPU."""
    if INTERPRETING and request.param == "bf16":
        pytest.skip("Triton's interpreter computes bf16 wrongly")
    return PRECISIONS[request.param]


@pytest.fixture
def nan_filled(runtime: Runtime) -> NanFilled:
    """Makes tensors of NaN on the runtime's device: what a kernel leaves unwritten, or reads unasked, shows."""

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=runtime.device)

    return make


@pytest.fixture
def random_lengths(runtime: Runtime) -> RandomLengths:
    """Makes int32 `[count]` lengths from 0 to `capacity`, with none, one and all of it among the first."""

    def make(count: int, capacity: int, seed: int = 0) -> torch.Tensor:
        drawn = np.random.default_rng(seed).integers(0, capacity + 1, count)
        edges = np.array([capacity, 0, 1, capacity - 1])[:count]
        drawn[: len(edges)] = edges.clip(0, capacity)
        return torch.from_numpy(drawn.astype(np.int32)).to(runtime.device)

    return make
