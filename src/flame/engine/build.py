"""From a model package to an engine that can serve: built or loaded, measured, and found to agree with the oracle."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from flame.config import EngineConfig
from flame.engine import artifact as artifacts
from flame.engine.backends.base import Engine
from flame.engine.choice import Choice, decide
from flame.engine.devices import devices
from flame.engine.gate import ORACLE, refuse_failed, validated
from flame.engine.measuring import Place, Progress, measure
from flame.engine.package import ModelPackage
from flame.engine.spec import Profile
from flame.errors import BackendUnavailable, ConfigError, EngineError, ExecutionError, ValidationFailed

_log = logging.getLogger(__name__)

_WHERE = "name a folder that can be written, in engine.artifact or for all artifacts in $XDG_CACHE_HOME"

_PASSED_OVER = (BackendUnavailable, ExecutionError, ValidationFailed)
"""After these `auto` takes the next backend: not buildable here, launches that fail, wrong scores."""


class Built(NamedTuple):
    """An engine and the artifact it comes from: its folder, its fingerprint, and its validations by now."""

    engine: Engine
    folder: Path
    fingerprint: str
    validations: tuple[artifacts.Validation, ...]


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
    replaces what is there. An artifact in `config.artifact` that does not fit raises `ArtifactMismatch`. What a named
    backend cannot build raises `BackendUnavailable`, an engine whose scores are not the oracle's `ValidationFailed`,
    and one that fails on random input `ExecutionError`: of these `auto` warns, and takes the next backend, up to the
    oracle. A wrong setting raises `ConfigError`.
    """
    return build_artifact(package, config, profiles, threads=threads, force=force, progress=progress).engine


def build_all(
    package: ModelPackage,
    config: EngineConfig,
    profiles: Sequence[Profile],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Engine]:
    """An engine, as by `build`, for each device that `config.device` names: of one backend and one precision.

    Devices of the same kind share an artifact and the costs in it. Raises what `build` raises.
    """
    first, *others = devices(config.device)
    with ExitStack() as undo:
        built = build_artifact(package, replace(config, device=first), profiles, threads=threads, progress=progress)
        engines = [built.engine]
        undo.callback(built.engine.close)
        same = replace(
            config,
            backend=built.engine.backend,
            precision=built.engine.precision,
            artifact=str(built.folder) if config.artifact else "",
        )
        for device in others:
            engines.append(build(package, replace(same, device=device), profiles, threads=threads, progress=progress))
            undo.callback(engines[-1].close)
        undo.pop_all()
    return engines


def build_artifact(
    package: ModelPackage,
    config: EngineConfig,
    profiles: Sequence[Profile],
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Built:
    """The same, with what is known of the artifact."""
    report = progress or (lambda step, done, steps: None)
    refused: dict[str, EngineError] = {}
    while True:
        choice = decide(package, config, profiles, threads, refused)
        try:
            return _engine(choice, force, validate=config.validate == "build", report=report)
        except _PASSED_OVER as error:
            if config.backend != "auto" or choice.name == ORACLE:
                raise
            _log.warning("backend auto: %s is passed over: %s", choice.name, error)
            refused[choice.name] = error


def _engine(choice: Choice, force: bool, *, validate: bool, report: Progress) -> Built:
    artifact = _artifact(choice, force, report)
    if validate:
        refuse_failed(choice.name, artifact)
    elif artifact.failures:
        _log.warning("%s did not agree with the oracle and runs by engine.validate=off", choice.name)
    place = Place(choice.folder, choice.identity, choice.target.threads)
    validations = artifact.validations
    engine = _opened(choice)
    try:
        measure(engine, artifact, place, report)
        if validate:
            validations = validated(engine, choice.package, artifact, place, report)
    except BaseException:
        _close_failed(engine)
        raise
    return Built(engine, choice.folder, artifacts.fingerprint(choice.identity), validations)


def _close_failed(engine: Engine) -> None:
    """Closes an engine that is not to be used; a GPU that failed fails at this too, which must not hide the reason."""
    try:
        engine.close()
    except Exception as error:
        _log.warning("%s: closing it failed: %s", engine.backend, error)


def _artifact(choice: Choice, force: bool, report: Progress) -> artifacts.Artifact:
    """What is in the folder, or what is built into it now; of two builders at once, the second finds the first's."""
    folder = choice.folder
    try:
        found = None if force else artifacts.read(folder, choice.identity)
        if not found:
            with artifacts.locked(folder):
                found = None if force else artifacts.read(folder, choice.identity)
                if not found:
                    return _built(choice, report)
    except OSError as error:
        raise ConfigError(f"an artifact cannot be kept in {folder}: {error.strerror or error}; {_WHERE}") from error
    _log.info("%s: loaded the artifact %s", choice.name, folder)
    return found


def _built(choice: Choice, report: Progress) -> artifacts.Artifact:
    report(f"building {choice.name}", 0, 1)
    with tempfile.TemporaryDirectory(prefix="flame-") as work:
        try:
            choice.backend.prepare(choice.package, choice.profiles, Path(work), choice.target)
        except OSError as error:
            raise BackendUnavailable(f"{choice.name} could not be built: {error}") from error
        artifact = artifacts.write(choice.folder, choice.identity, Path(work))
    report(f"building {choice.name}", 1, 1)
    _log.info("%s: wrote the artifact %s", choice.name, choice.folder)
    return artifact


def _opened(choice: Choice) -> Engine:
    try:
        return choice.backend.open(choice.package, choice.profiles, choice.folder, choice.target)
    except OSError as error:
        raise BackendUnavailable(
            f"{choice.name} cannot load what it built ({error}); code cannot run from a folder mounted noexec, and not "
            f"where libraries are older than where it was built: {_WHERE}"
        ) from error
