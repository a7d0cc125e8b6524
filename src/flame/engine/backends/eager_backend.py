"""How `eager` is built: nothing has to be, any model will do, and a CPU or a CUDA device."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from flame.engine.backends.base import Engine
from flame.engine.backends.eager import EagerEngine
from flame.engine.backends.registry import BuildTarget
from flame.engine.package import ModelPackage
from flame.engine.spec import ModelSpec, Profile
from flame.errors import BackendUnavailable

_CUDA = re.compile(r"cuda(:\d+)?")


class EagerBackend:
    """Plain PyTorch, fp32."""

    per_profile = False

    def resolve(self, target: BuildTarget) -> BuildTarget:
        return target.on("cpu", "fp32")

    def require(self, spec: ModelSpec, target: BuildTarget) -> None:
        """Raises `BackendUnavailable` for a precision other than fp32, and a device that is not here."""
        target.require_no_parts("eager")
        if target.precision not in ("auto", "fp32"):
            raise BackendUnavailable(f"eager runs in fp32 only, engine.precision is {target.precision!r}")
        if target.device not in ("auto", "cpu") and not _CUDA.fullmatch(target.device):
            raise BackendUnavailable(f"engine.device is {target.device!r}; eager runs on cpu, cuda or cuda:NUMBER")
        if target.device.startswith("cuda"):
            _require_cuda(target.device, int(target.device[5:] or 0))

    def versions(self) -> Mapping[str, str]:
        return {}

    def prepare(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> None:
        """Writes nothing."""

    def open(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> Engine:
        """An engine; PyTorch's threads are set for the whole process, as PyTorch knows no other way."""
        if target.device == "cpu":
            torch.set_num_threads(target.threads)
        return EagerEngine(package, profiles, target.device)


def _require_cuda(device: str, index: int) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= found:
        raise BackendUnavailable(f"engine.device is {device!r}, but PyTorch finds {found} CUDA devices here")
