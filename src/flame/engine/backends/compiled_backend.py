"""How `compiled` is built: the C++ kernels are compiled with the model's sizes as constants."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from flame.engine.backends import compiled_model
from flame.engine.backends.base import Engine
from flame.engine.backends.compiled import CompiledEngine
from flame.engine.backends.compiled_model import constants
from flame.engine.backends.registry import BuildTarget
from flame.engine.kernels.cpu.compiler import (
    FLAGS,
    SOURCES,
    CompileError,
    compile_library,
    compiler_version,
    find_compiler,
)
from flame.engine.package import ModelPackage
from flame.engine.spec import ModelSpec, Profile
from flame.errors import BackendUnavailable

LIBRARY = "kernels.so"


class CompiledBackend:
    """Needs a C++20 compiler, a Climber or an HSTU, and fp32 on a CPU."""

    per_profile = False

    def resolve(self, target: BuildTarget) -> BuildTarget:
        return target.on("cpu", "fp32")

    def require(self, spec: ModelSpec, target: BuildTarget) -> None:
        """Raises `BackendUnavailable` with what is in the way."""
        if spec.module:
            raise BackendUnavailable(
                f"compiled knows Climber and HSTU, and model {spec.name!r} is a module of its own: use eager"
            )
        target.require_cpu_fp32("compiled")
        try:
            find_compiler()
        except CompileError as error:
            raise BackendUnavailable(f"compiled needs a C++ compiler: {error}") from error

    def versions(self) -> Mapping[str, str]:
        """The compiler, its options, and a hash of the kernels' sources and of what gives them their constants."""
        digest = hashlib.sha256()
        for source in (*sorted(SOURCES.iterdir()), Path(compiled_model.__file__)):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
        return {
            "compiler": compiler_version(find_compiler()),
            "flags": " ".join(FLAGS),
            "kernels": digest.hexdigest()[:32],
        }

    def prepare(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> None:
        """Compiles `kernels.so` into `folder`. Raises `BackendUnavailable` with the compiler's message."""
        try:
            compile_library(f"{package.spec.architecture}.cpp", constants(package.spec), folder / LIBRARY)
        except CompileError as error:
            raise BackendUnavailable(f"compiled could not be built: {error}") from error

    def open(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> Engine:
        return CompiledEngine(package, profiles, folder / LIBRARY, target.threads)
