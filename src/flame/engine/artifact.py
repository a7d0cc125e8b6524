"""A built engine on disk: what the backend wrote, what it was built from, and what its profiles cost.

    artifact.json     identity, hashes of the files, costs, validations; written last
    .lock             held by whoever builds
    ...               the backend's files

The identity says for which weights, spec, precision, backend, versions and machine an artifact is good. Its
fingerprint names the default folder, so artifacts of other models, versions or machines never meet.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from flame.engine.spec import Profile, ProfileCost
from flame.errors import ArtifactMismatch, ConfigError
from flame.files import replacing

ARTIFACT_FILE = "artifact.json"
_FORMAT = 1

Identity = Mapping[str, str]
Costs = Mapping[Profile, ProfileCost]
Ways = Mapping[Profile, Mapping[str, str]]


class Validation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One comparison of the engine with the oracle.

    `profiles` were compared, `failures` say what was out of tolerance, the worst first (none: the engine may serve),
    and `report` holds all that was measured, with seed and number of requests (`ValidationReport.to_dict`).
    """

    profiles: tuple[str, ...]
    failures: tuple[str, ...]
    report: dict[str, Any]


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of `artifact.json`.

    `files` holds SHA-256 by name; `costs` holds the cost by profile, by threads of a launch; `ways` holds the way that
    was found fastest by kind of launch, by profile; `validations` are those of this build, in their order.
    """

    format: int
    identity: dict[str, str]
    files: dict[str, str]
    costs: dict[str, dict[str, ProfileCost]] = {}
    ways: dict[str, dict[str, str]] = {}
    validations: tuple[Validation, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Why this engine may not serve."""
        return tuple(failure for validation in self.validations for failure in validation.failures)

    @property
    def validated_profiles(self) -> frozenset[str]:
        """The profiles in which it was compared with the oracle."""
        return frozenset(profile for validation in self.validations for profile in validation.profiles)

    def costs_of(self, profiles: Sequence[Profile], threads: int) -> dict[Profile, ProfileCost]:
        """The costs that are known of these profiles."""
        known = self.costs.get(str(threads), {})
        return {profile: known[str(profile)] for profile in profiles if str(profile) in known}


def fingerprint(identity: Identity) -> str:
    """32 hexadecimal digits over the identity."""
    text = msgspec.json.encode(dict(sorted(identity.items())))
    return hashlib.sha256(text).hexdigest()[:32]


def default_folder(identity: Identity) -> Path:
    """A folder of the user's cache directory (`$XDG_CACHE_HOME`, else `~/.cache`) named by the fingerprint.

    Raises `ConfigError` where there is neither.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = Path(base) if base else Path.home() / ".cache"
    except RuntimeError as error:
        raise ConfigError("this user has no home folder: set engine.artifact or $XDG_CACHE_HOME") from error
    return cache / "flame" / "artifacts" / fingerprint(identity)


def read(folder: Path, identity: Identity) -> Artifact | None:
    """The artifact in `folder`, or None where there is none.

    Raises `ArtifactMismatch` that names what differs from `identity`, or the file that is damaged. Compiled files
    are code: whoever can write to the folder can run code in this process.
    """
    try:
        content = (folder / ARTIFACT_FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(content, type=Artifact)
    except msgspec.DecodeError as error:
        raise ArtifactMismatch(f"{ARTIFACT_FILE} is not readable ({error}); {_REMEDY}") from error
    _check(found, identity)
    for name, digest in found.files.items():
        if _digest(folder / name) != digest:
            raise ArtifactMismatch(f"file {name!r} of the artifact is missing or damaged; {_REMEDY}")
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other builders out of it, threads and processes alike; waits for them first."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(folder: Path, identity: Identity, built: Path) -> Artifact:
    """Makes `folder` an artifact of the files in `built`; the caller holds the lock.

    Every file is put in its place whole, and `artifact.json` after all others: `read` finds the old artifact, the new
    one, or in between a file that it calls damaged. Files that are replaced after it has read are not noticed.
    """
    old = _files_of(folder)
    names = sorted(path.name for path in built.iterdir())
    for name in names:
        with replacing(folder / name) as new:
            shutil.copyfile(built / name, new)
    artifact = Artifact(_FORMAT, dict(identity), {name: _digest(built / name) or "" for name in names})
    _write_json(folder, artifact)
    for name in old - set(names):
        (folder / name).unlink(missing_ok=True)
    return artifact


def add_measured(folder: Path, identity: Identity, threads: int, costs: Costs, ways: Ways) -> None:
    """Writes costs and ways into the artifact, beside those it has by now."""

    def change(artifact: Artifact) -> Artifact:
        merged = {number: dict(known) for number, known in artifact.costs.items()}
        merged.setdefault(str(threads), {}).update({str(profile): cost for profile, cost in costs.items()})
        taken = artifact.ways | {str(profile): dict(found) for profile, found in ways.items()}
        return msgspec.structs.replace(artifact, costs=merged, ways=taken)

    _change(folder, identity, change)


def add_validation(folder: Path, identity: Identity, validation: Validation) -> None:
    """Writes a validation into the artifact, behind those it has by now."""

    def change(artifact: Artifact) -> Artifact:
        return msgspec.structs.replace(artifact, validations=(*artifact.validations, validation))

    _change(folder, identity, change)


def _change(folder: Path, identity: Identity, change: Callable[[Artifact], Artifact]) -> None:
    """Replaces `artifact.json`, where there still is one. Raises as `read` does, and `OSError`."""
    with locked(folder):
        artifact = read(folder, identity)
        if artifact is not None:
            _write_json(folder, change(artifact))


_REMEDY = "build it again (flame build --force), or name another folder in engine.artifact"


def _check(found: Artifact, identity: Identity) -> None:
    if found.format != _FORMAT:
        raise ArtifactMismatch(f"the artifact has format {found.format}, this FLAME reads {_FORMAT}; {_REMEDY}")
    names = sorted(found.identity.keys() | identity.keys())
    differences = [
        f"{name} was {_short(found.identity.get(name))}, now {_short(identity.get(name))}"
        for name in names
        if found.identity.get(name) != identity.get(name)
    ]
    if differences:
        raise ArtifactMismatch(f"the artifact was built for something else: {'; '.join(differences)}; {_REMEDY}")


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return repr(value if len(value) <= 60 else f"{value[:57]}...")


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _files_of(folder: Path) -> set[str]:
    """The files that an artifact in `folder` names, whatever it was built for; none where it cannot be read."""
    try:
        return set(msgspec.json.decode((folder / ARTIFACT_FILE).read_bytes(), type=Artifact).files)
    except (FileNotFoundError, msgspec.DecodeError):
        return set()


def _write_json(folder: Path, artifact: Artifact) -> None:
    text = msgspec.json.format(msgspec.json.encode(artifact), indent=2)
    with replacing(folder / ARTIFACT_FILE) as new:
        new.write_bytes(text + b"\n")
