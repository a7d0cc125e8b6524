"""How `fused` is built: every kernel of the model's program is compiled for this GPU, ahead of time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import flame.layout
from flame.engine import kernels
from flame.engine.backends.base import Engine
from flame.engine.backends.fused import cubins
from flame.engine.backends.fused.compiling import Order, compile_all
from flame.engine.backends.fused.engine import FusedEngine
from flame.engine.backends.fused.graph_lane import GraphLane
from flame.engine.backends.fused.lanes import StreamLane
from flame.engine.backends.fused.parts import check_parts
from flame.engine.backends.fused.precision import PRECISIONS
from flame.engine.backends.fused.programs import check_architecture, kernels_of, program_type
from flame.engine.backends.registry import BuildTarget
from flame.engine.kernels.kernel import KernelError
from flame.engine.package import ModelPackage
from flame.engine.spec import ModelSpec, Profile
from flame.errors import BackendUnavailable

if TYPE_CHECKING:
    from flame.engine.kernels.driver import Driver

_LEAST_CAPABILITY = 80
_SOURCES = (Path(kernels.__file__).parent, Path(__file__).parent)
_ENDINGS = (".py", ".cu", ".cuh", ".h")


class FusedBackend:
    """Needs a CUDA device of compute capability 8.0 or higher, Triton, and a Climber or an HSTU."""

    per_profile = False

    def resolve(self, target: BuildTarget) -> BuildTarget:
        """bf16 on the first CUDA device; threads of a launch mean nothing there."""
        return target.on("cuda", "bf16")._replace(threads=1)

    def require(self, spec: ModelSpec, target: BuildTarget) -> None:
        """Raises `BackendUnavailable` with what is in the way."""
        check_architecture(spec)
        resolved = self.resolve(target)
        without = check_parts(resolved.without)
        device = _device(resolved.device)
        _require_packages()
        try:
            kernels_of(spec, PRECISIONS[resolved.precision], without, _capability(device))
        except ImportError as error:
            raise BackendUnavailable(f"fused cannot import its kernels: {error}") from error

    def versions(self) -> Mapping[str, str]:
        """The compilers, and a hash of all sources that decide what is compiled and launched."""
        digest = hashlib.sha256()
        for source in _sources():
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
        return {"triton": _installed("triton"), "nvrtc": _nvrtc(), "kernels": digest.hexdigest()[:32]}

    def prepare(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> None:
        """Compiles every kernel into `folder`. Raises `BackendUnavailable` with the compiler's message."""
        capability = _capability(_device(target.device))
        compile_all(Order(package.spec, target.precision, target.without, capability), folder)

    def open(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> Engine:
        """Loads machine code and weights. Raises `BackendUnavailable` with what the driver or PyTorch said."""
        from flame.engine.kernels.driver import Driver

        device = _device(target.device)
        try:
            driver = Driver(cubins.read(folder), device)
            return _engine(package, profiles, driver, target)
        except (KernelError, RuntimeError) as error:
            raise BackendUnavailable(f"fused cannot be loaded onto {device}: {error}") from error


def _engine(package: ModelPackage, profiles: Sequence[Profile], driver: Driver, target: BuildTarget) -> FusedEngine:
    """The engine with its weights on the device; `driver` is the engine's from then on, and closed where it fails."""
    spec, device = package.spec, driver.device
    without, precision = check_parts(target.without), PRECISIONS[target.precision]
    try:
        program = program_type(spec)(spec, precision, driver, package.weights, without, _capability(device))
    except BaseException:
        driver.close()
        raise
    return FusedEngine(
        spec,
        profiles,
        program,
        device=device,
        precision=precision.name,
        lane=partial(StreamLane if "graph" in without else GraphLane, device),
        at_close=driver.close,
    )


def _device(name: str) -> torch.device:
    """The CUDA device of that name. Raises `BackendUnavailable` where there is none, or an old one."""
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise BackendUnavailable(f"fused runs on cuda or cuda:NUMBER, engine.device is {name!r}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise BackendUnavailable("fused needs a CUDA device, and PyTorch finds none here")
    device = torch.device("cuda", int(index) if index else torch.cuda.current_device())
    if device.index >= found:
        raise BackendUnavailable(f"engine.device is {name!r}, but PyTorch finds {found} CUDA devices here")
    if _capability(device) < _LEAST_CAPABILITY:
        raise BackendUnavailable(
            f"fused needs compute capability 8.0, {torch.cuda.get_device_name(device)} has {_capability(device) / 10}"
        )
    return device


def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _require_packages() -> None:
    missing = [name for name in ("triton", "cuda.bindings") if not _importable(name)]
    if missing:
        raise BackendUnavailable(f"fused needs {' and '.join(missing)}: pip install 'flame-serving[gpu]'")


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _sources() -> list[Path]:
    """Host and device code of the kernels, the programs, and the layout that kernels read by."""
    files = [path for folder in _SOURCES for path in sorted(folder.rglob("*")) if path.suffix in _ENDINGS]
    cpu = _SOURCES[0] / "cpu"
    return [path for path in files if not path.is_relative_to(cpu)] + [Path(flame.layout.__file__)]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _nvrtc() -> str:
    from flame.engine.kernels.nvrtc import version as nvrtc_version

    return nvrtc_version()
