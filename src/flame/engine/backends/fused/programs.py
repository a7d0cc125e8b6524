"""Which program runs a model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

import torch

from flame.engine.backends.fused.precision import Precision
from flame.engine.backends.fused.program import Program
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.spec import ModelSpec
from flame.errors import BackendUnavailable

_PROGRAMS = {
    "climber": "flame.engine.backends.fused.climber:ClimberProgram",
    "hstu": "flame.engine.backends.fused.hstu:HstuProgram",
}


class ProgramType(Protocol):
    """A class of programs."""

    def __call__(
        self,
        spec: ModelSpec,
        precision: Precision,
        runtime: Runtime,
        weights: Mapping[str, torch.Tensor] | None,
        without: frozenset[str],
        capability: int,
    ) -> Program:
        """A program with its weights on the runtime's device; without weights it only tells kernels and sizes.

        Raises `BackendUnavailable` for a model that its kernels cannot run.
        """


class Nowhere:
    """The runtime of programs that are asked for their kernels only."""

    device = torch.device("meta")

    def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: torch.Tensor | int | float | bytes) -> None:
        """Fails: there is no device."""
        raise AssertionError(f"{kernel.name} was launched before there is a device")


def check_architecture(spec: ModelSpec) -> None:
    """Raises `BackendUnavailable` for a model that no program runs."""
    if spec.architecture not in _PROGRAMS:
        raise BackendUnavailable(
            f"fused knows Climber and HSTU, and model {spec.name!r} is a module of its own: use eager"
        )


def program_type(spec: ModelSpec) -> ProgramType:
    """The class of programs for this architecture, imported now. Raises `BackendUnavailable` where there is none."""
    check_architecture(spec)
    module, _, name = _PROGRAMS[spec.architecture].partition(":")
    found: ProgramType = getattr(importlib.import_module(module), name)
    return found


def kernels_of(spec: ModelSpec, precision: Precision, without: frozenset[str], capability: int) -> Mapping[str, Kernel]:
    """All kernels of a model's program, by name."""
    kernels = program_type(spec)(spec, precision, Nowhere(), None, without, capability).kernels()
    named = {kernel.name: kernel for kernel in kernels}
    assert all(named[kernel.name] == kernel for kernel in kernels), "two kernels of a program have one name"
    return named
