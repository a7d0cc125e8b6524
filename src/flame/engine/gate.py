"""No engine serves before it agrees with the oracle: compared when it is new, and the outcome kept in its artifact."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import torch

from flame.engine import artifact as artifacts
from flame.engine.artifact import Artifact, Validation
from flame.engine.backends.base import Engine
from flame.engine.backends.eager import EagerEngine
from flame.engine.measuring import Place, Progress
from flame.engine.package import ModelPackage
from flame.engine.spec import Profile
from flame.engine.validate import validate
from flame.errors import ValidationFailed

_log = logging.getLogger(__name__)

ORACLE = EagerEngine.backend

_SEED = 0
_FEW, _MANY = 4, 32
"""Requests. fp32 needs few: what is right is far within its tolerance. The tolerances of 16 bits were found with 32
requests; fewer would refuse an engine for one unlucky request."""

_MOST_USERS_ON_CPU, _MOST_COMPARED_ON_CPU = 2, 128
"""Users of a launch, and of their candidates those that the oracle scores: on a CPU it is an order of magnitude slower
than the engine, which alone tells the isolation of all candidates."""


def refuse_failed(name: str, artifact: Artifact) -> None:
    """Raises `ValidationFailed` for an artifact whose engine did not agree with the oracle."""
    if failures := artifact.failures:
        raise ValidationFailed(f"{_told(name, failures)} This was found before; `flame build --force` looks again")


def validated(
    engine: Engine, package: ModelPackage, artifact: Artifact, place: Place, report: Progress
) -> tuple[Validation, ...]:
    """All validations that the artifact has by now, a new one among them where the engine has profiles beyond them.

    Compared are the smallest and the largest profile, and candidates moved from one to the other, each full and with
    odd sizes. Every way of a launch gives the same bits, so the ways taken by now stand for all. Raises
    `ValidationFailed`, and keeps that too.
    """
    ends = _ends(engine.profiles)
    if engine.backend == ORACLE or {str(profile) for profile in ends} <= artifact.validated_profiles:
        return artifact.validations
    found = _compare(engine, package, ends, place.threads, report)
    _keep(place, found)
    if found.failures:
        raise ValidationFailed(_told(engine.backend, found.failures))
    _log.info("%s: agrees with %s on %d random requests", engine.backend, ORACLE, found.report["requests"])
    return (*artifact.validations, found)


def _ends(profiles: Sequence[Profile]) -> tuple[Profile, ...]:
    """The smallest and the largest."""
    return tuple({min(profiles, key=lambda one: one.rows): None, max(profiles, key=lambda one: one.rows): None})


def _compare(
    engine: Engine, package: ModelPackage, profiles: tuple[Profile, ...], threads: int, report: Progress
) -> Validation:
    with _oracle(package, engine.device, threads) as oracle:
        on_cpu = engine.device == "cpu"
        found = validate(
            engine,
            oracle,
            requests=_FEW if engine.precision == "fp32" else _MANY,
            seed=_SEED,
            profiles=profiles,
            most_users=_MOST_USERS_ON_CPU if on_cpu else None,
            most_compared=_MOST_COMPARED_ON_CPU if on_cpu else None,
            progress=lambda done, wanted: report("validating", done, wanted),
        )
    # As it will be read from the artifact, where an infinite error is none.
    content = msgspec.json.decode(msgspec.json.encode(found.to_dict()))
    return Validation(tuple(content.pop("profiles")), tuple(content.pop("failures")), content)


@contextmanager
def _oracle(package: ModelPackage, device: str, threads: int) -> Iterator[EagerEngine]:
    """The oracle beside the engine: on its GPU where there is room, else on the CPU with at most `threads` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, threads))
    try:
        oracle = _on(package, device)
        yield oracle
        oracle.close()
        if device != "cpu":
            torch.cuda.empty_cache()
    finally:
        torch.set_num_threads(before)


def _on(package: ModelPackage, device: str) -> EagerEngine:
    try:
        return EagerEngine(package, (), device)
    except torch.OutOfMemoryError as error:
        _log.info("the oracle runs on the CPU, the model does not fit %s a second time: %s", device, error)
        return EagerEngine(package, ())


def _keep(place: Place, found: Validation) -> None:
    """Adds to the artifact; where it cannot be written, the engine is validated again next time."""
    try:
        artifacts.add_validation(place.folder, place.identity, found)
    except OSError as error:
        _log.warning("the validation cannot be kept in the artifact %s: %s", place.folder, error)


def _told(name: str, failures: Sequence[str]) -> str:
    more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
    return (
        f"{name} does not give the oracle's scores: {failures[0]}{more}. Take another engine.backend, or another "
        f"engine.precision; `flame validate --backend {name}` tells all, engine.validate=off serves it nevertheless."
    )
