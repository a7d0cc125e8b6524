"""What tests of GPU kernels share: each runs in Triton's interpreter, and compiled where there is a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch

from flame.engine.backends.fused.precision import PRECISIONS, Precision
from flame.engine.kernels.kernel import Runtime

NanFilled = Callable[..., torch.Tensor]
RandomLengths = Callable[..., torch.Tensor]

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["interpreted", pytest.param("compiled", marks=pytest.mark.gpu)])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """What launches kernels: Triton's interpreter on the CPU, then the compiled kernels on the GPU."""
    return _compiled() if request.param == "compiled" else _interpreted()


def _compiled() -> Runtime:
    from flame.engine.kernels.driver import DriverRuntime

    return DriverRuntime(torch.device("cuda"))


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
