"""The backends by name, imported only when asked for."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from flame.engine.spec import ModelSpec, Profile
from flame.errors import BackendUnavailable, ConfigError, EngineError

if TYPE_CHECKING:
    from flame.engine.backends.base import Engine
    from flame.engine.package import ModelPackage

_log = logging.getLogger(__name__)

_BACKENDS = {
    "fused": "flame.engine.backends.fused.backend:FusedBackend",
    "compiled": "flame.engine.backends.compiled_backend:CompiledBackend",
    "openvino": "flame.engine.backends.openvino_backend:OpenVinoBackend",
    "eager": "flame.engine.backends.eager_backend:EagerBackend",
}
"""From the fastest to the one that always runs: the order in which `auto` tries them."""

NAMES = ("auto", *_BACKENDS)


class BuildTarget(NamedTuple):
    """What an engine is built for; `threads` is how many one launch may use on a CPU.

    `device` and `precision` may be "auto" until a backend resolves them. `without` names parts of the fused backend
    to leave out.
    """

    device: str
    precision: str
    threads: int
    without: tuple[str, ...] = ()

    def on(self, device: str, precision: str) -> BuildTarget:
        """With this device and precision in the place of "auto"."""
        return self._replace(
            device=device if self.device == "auto" else self.device,
            precision=precision if self.precision == "auto" else self.precision,
        )

    def require_cpu_fp32(self, backend: str) -> None:
        """Raises `BackendUnavailable` when this is another device or precision, or names parts to leave out."""
        self.require_no_parts(backend)
        if self.device not in ("auto", "cpu"):
            raise BackendUnavailable(f"{backend} runs on a CPU, engine.device is {self.device!r}")
        if self.precision not in ("auto", "fp32"):
            raise BackendUnavailable(f"{backend} runs in fp32, engine.precision is {self.precision!r}")

    def require_no_parts(self, backend: str) -> None:
        """Raises `BackendUnavailable` when parts are to be left out: only the fused backend is made of parts."""
        if self.without:
            raise BackendUnavailable(f"{backend} has no parts to leave out, engine.without is {list(self.without)}")


class Backend(Protocol):
    """How engines of one kind are built.

    `per_profile` says whether what `prepare` writes depends on the profiles.
    """

    per_profile: bool

    def resolve(self, target: BuildTarget) -> BuildTarget:
        """`target` with the device and precision that this backend takes where it says "auto"."""

    def require(self, spec: ModelSpec, target: BuildTarget) -> None:
        """Raises `BackendUnavailable` with the reason when this backend cannot run this model here."""

    def versions(self) -> Mapping[str, str]:
        """Of what it is built with; other versions make other artifacts."""

    def prepare(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> None:
        """Writes what has to be built once into the empty `folder`; `target` is resolved."""

    def open(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> Engine:
        """An engine from what `prepare` wrote, without costs; `target` is resolved."""


def backend(name: str) -> Backend:
    """The backend of that name. Raises `BackendUnavailable` with the cause when it cannot be imported."""
    if name not in _BACKENDS:
        raise ConfigError(f"engine.backend is {name!r}; backends are {', '.join(NAMES)}")
    module, _, attribute = _BACKENDS[name].partition(":")
    try:
        found: Backend = getattr(importlib.import_module(module), attribute)()
    except ImportError as error:
        raise BackendUnavailable(f"backend {name!r} cannot be imported: {error}") from error
    return found


def choose(
    name: str, spec: ModelSpec, target: BuildTarget, refused: Mapping[str, EngineError] | None = None
) -> tuple[str, Backend]:
    """The backend asked for, or for `auto` the first that can run; says in the log what was passed over and why.

    `auto` does not try those in `refused`, which failed as is told there. Raises `BackendUnavailable` for a named
    backend that cannot run, and for `auto` when none can.
    """
    if name != "auto":
        asked = backend(name)
        asked.require(spec, target)
        return name, asked
    reasons = []
    for candidate in _BACKENDS:
        if refused and candidate in refused:
            reasons.append(f"{candidate}: {refused[candidate]}")
            continue
        try:
            found = choose(candidate, spec, target)
        except BackendUnavailable as error:
            _log.info("backend auto: not %s: %s", candidate, error)
            reasons.append(f"{candidate}: {error}")
        else:
            device, precision, *_ = found[1].resolve(target)
            _log.info("backend auto: %s on %s in %s", candidate, device, precision)
            return found
    raise BackendUnavailable("no backend can run this model here: " + "; ".join(reasons))
