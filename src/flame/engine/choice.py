"""Which engine is to be built: the backend that will do here, and what its artifact is made of and called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import flame
from flame.config import EngineConfig
from flame.engine import artifact as artifacts
from flame.engine.backends.registry import Backend, BuildTarget, choose
from flame.engine.devices import one_device
from flame.engine.machine import graphics_card, processor, usable_cores
from flame.engine.package import ModelPackage
from flame.engine.spec import Profile
from flame.errors import ConfigError, EngineError


class Choice(NamedTuple):
    """One engine to be: of what, by what, for what. `target` is resolved; `folder` is the artifact's."""

    package: ModelPackage
    profiles: tuple[Profile, ...]
    name: str
    backend: Backend
    target: BuildTarget
    identity: artifacts.Identity
    folder: Path


def decide(
    package: ModelPackage,
    config: EngineConfig,
    profiles: Sequence[Profile],
    threads: int | None = None,
    refused: Mapping[str, EngineError] | None = None,
) -> Choice:
    """What `config` asks for; `auto` takes none of the backends in `refused`.

    What `auto` takes after a refusal has a folder of its own below `config.artifact`, so that the two artifacts do
    not take turns there. Raises `BackendUnavailable` and `ConfigError`.
    """
    _check_profiles(package, profiles)
    device = one_device(config.device)
    asked = BuildTarget(device, config.precision, threads or config.threads or usable_cores(), config.without)
    name, backend = choose(config.backend, package.spec, asked, refused)
    target = backend.resolve(asked)
    shapes = tuple(dict.fromkeys(profiles))
    identity = _identity(package, shapes, name, backend, target)
    own = Path(config.artifact) if config.artifact else None
    folder = own / name if own and refused else own or artifacts.default_folder(identity)
    return Choice(package, shapes, name, backend, target, identity, folder)


def _identity(
    package: ModelPackage, profiles: tuple[Profile, ...], name: str, backend: Backend, target: BuildTarget
) -> artifacts.Identity:
    return {
        "model": package.fingerprint,
        "backend": name,
        "device": target.device.partition(":")[0],  # its number is nothing that an artifact depends on
        "precision": target.precision,
        "flame": flame.__version__,
        "torch": version("torch"),
        **backend.versions(),
        **(processor() if target.device == "cpu" else graphics_card(target.device)),
        **({"profiles": ", ".join(map(str, profiles))} if backend.per_profile else {}),
        **({"without": ", ".join(sorted(set(target.without)))} if target.without else {}),
    }


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
