"""How `eager` is built: nothing has to be, any model and any device will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from flame.engine.backends.base import Engine
from flame.engine.backends.eager import EagerEngine
from flame.engine.backends.registry import BuildTarget
from flame.engine.package import ModelPackage
from flame.engine.spec import ModelSpec, Profile
from flame.errors import BackendUnavailable


class EagerBackend:
    """Plain PyTorch, fp32."""

    per_profile = False

    def require(self, spec: ModelSpec, target: BuildTarget) -> None:
        """Raises `BackendUnavailable` for a precision other than fp32."""
        if target.precision not in ("auto", "fp32"):
            raise BackendUnavailable(f"eager runs in fp32 only, engine.precision is {target.precision!r}")

    def versions(self) -> Mapping[str, str]:
        return {}

    def prepare(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path) -> None:
        """Writes nothing."""

    def open(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> Engine:
        """An engine; PyTorch's threads are set for the whole process, as PyTorch knows no other way."""
        device = "cpu" if target.device == "auto" else target.device
        if device == "cpu":
            torch.set_num_threads(target.threads)
        return EagerEngine(package, profiles, device)
