"""From a model package to an engine that can serve: choose a backend, load or build its artifact, know the costs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import flame
from flame.config import EngineConfig
from flame.engine import artifact as artifacts
from flame.engine.backends.base import Engine
from flame.engine.backends.registry import Backend, BuildTarget, choose
from flame.engine.machine import graphics_card, processor, usable_cores
from flame.engine.measuring import Place, Progress, measure
from flame.engine.package import ModelPackage
from flame.engine.spec import Profile
from flame.errors import BackendUnavailable, ConfigError

_log = logging.getLogger(__name__)

_WHERE = "name a folder that can be written, in engine.artifact or for all artifacts in $XDG_CACHE_HOME"


class _Build(NamedTuple):
    """One build: what of, by what, for what."""

    package: ModelPackage
    profiles: tuple[Profile, ...]
    name: str
    backend: Backend
    target: BuildTarget

    @property
    def identity(self) -> artifacts.Identity:
        profiles = {"profiles": ", ".join(map(str, self.profiles))} if self.backend.per_profile else {}
        without = {"without": ", ".join(sorted(set(self.target.without)))} if self.target.without else {}
        return {
            "model": self.package.fingerprint,
            "backend": self.name,
            "device": self.target.device,
            "precision": self.target.precision,
            "flame": flame.__version__,
            "torch": version("torch"),
            **self.backend.versions(),
            **(processor() if self.target.device == "cpu" else graphics_card(self.target.device)),
            **profiles,
            **without,
        }


def build(
    package: ModelPackage,
    config: EngineConfig,
    profiles: Sequence[Profile],
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Engine:
    """An engine for these profiles with the cost of each, from its artifact where that fits.

    `threads` of one launch on a CPU come from the caller, else from `config.threads`, else all cores. `force`
    replaces what is there. An artifact in `config.artifact` that does not fit raises `ArtifactMismatch`, a model that
    fails on random input `ExecutionError`. Other errors are `BackendUnavailable` and `ConfigError`.
    """
    build = _chosen(package, config, profiles, threads)
    folder = _folder(config, build)
    report = progress or (lambda step, done, steps: None)
    artifact = _artifact(build, folder, force, report)
    engine = _opened(build, folder)
    try:
        measure(engine, artifact, Place(folder, build.identity, build.target.threads), report)
    except BaseException:
        engine.close()
        raise
    return engine


def locate(package: ModelPackage, config: EngineConfig, profiles: Sequence[Profile]) -> tuple[Path, str]:
    """Folder and fingerprint of the artifact that `build` takes or makes for these; raises the same errors."""
    build = _chosen(package, config, profiles, None)
    return _folder(config, build), artifacts.fingerprint(build.identity)


def _chosen(package: ModelPackage, config: EngineConfig, profiles: Sequence[Profile], threads: int | None) -> _Build:
    _check_profiles(package, profiles)
    target = BuildTarget(config.device, config.precision, threads or config.threads or usable_cores(), config.without)
    name, backend = choose(config.backend, package.spec, target)
    return _Build(package, tuple(dict.fromkeys(profiles)), name, backend, backend.resolve(target))


def _check_profiles(package: ModelPackage, profiles: Sequence[Profile]) -> None:
    """Raises `ConfigError` for shapes that no launch can have."""
    if not profiles:
        raise ConfigError("an engine needs at least one profile")
    limits = package.spec.input
    for profile in profiles:
        users, history, candidates = profile
        if users < 1 or not 0 <= history <= limits.max_history or not 1 <= candidates <= limits.max_candidates:
            raise ConfigError(
                f"profile {profile} is beyond the model: users from 1, history from 0 to {limits.max_history}, "
                f"candidates from 1 to {limits.max_candidates}"
            )


def _folder(config: EngineConfig, build: _Build) -> Path:
    return Path(config.artifact) if config.artifact else artifacts.default_folder(build.identity)


def _artifact(build: _Build, folder: Path, force: bool, report: Progress) -> artifacts.Artifact:
    """What is in `folder`, or what is built into it now; of two builders at once, the second finds the first's."""
    try:
        found = None if force else artifacts.read(folder, build.identity)
        if not found:
            with artifacts.locked(folder):
                found = None if force else artifacts.read(folder, build.identity)
                if not found:
                    return _built(build, folder, report)
    except OSError as error:
        raise ConfigError(f"an artifact cannot be kept in {folder}: {error.strerror or error}; {_WHERE}") from error
    _log.info("%s: loaded the artifact %s", build.name, folder)
    return found


def _built(build: _Build, folder: Path, report: Progress) -> artifacts.Artifact:
    report(f"building {build.name}", 0, 1)
    with tempfile.TemporaryDirectory(prefix="flame-") as work:
        build.backend.prepare(build.package, build.profiles, Path(work), build.target)
        artifact = artifacts.write(folder, build.identity, Path(work))
    report(f"building {build.name}", 1, 1)
    _log.info("%s: wrote the artifact %s", build.name, folder)
    return artifact


def _opened(build: _Build, folder: Path) -> Engine:
    try:
        return build.backend.open(build.package, build.profiles, folder, build.target)
    except OSError as error:
        raise BackendUnavailable(
            f"{build.name} cannot load what it built ({error}); code cannot run from a folder mounted noexec, and not "
            f"where libraries are older than where it was built: {_WHERE}"
        ) from error
