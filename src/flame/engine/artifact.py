"""A built engine on disk: what the backend wrote, what it was built from, and what its profiles cost.

    artifact.json     identity, hashes of the files, costs
    ...               the backend's files

The identity says for which weights, spec, precision, backend, versions and machine an artifact is good. Its
fingerprint names the default folder, so artifacts of other models, versions or machines never meet.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from flame.engine.folder import replaced_folder
from flame.engine.spec import Profile, ProfileCost
from flame.errors import ArtifactMismatch

ARTIFACT_FILE = "artifact.json"
_FORMAT = 1

Identity = Mapping[str, str]
Costs = Mapping[Profile, ProfileCost]


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of `artifact.json`.

    `files` holds SHA-256 by name; `costs` holds the cost by profile, by threads of a launch.
    """

    format: int
    identity: dict[str, str]
    files: dict[str, str]
    costs: dict[str, dict[str, ProfileCost]] = {}

    def costs_of(self, profiles: Sequence[Profile], threads: int) -> dict[Profile, ProfileCost]:
        """The costs that are known of these profiles."""
        known = self.costs.get(str(threads), {})
        return {profile: known[str(profile)] for profile in profiles if str(profile) in known}


def fingerprint(identity: Identity) -> str:
    """32 hexadecimal digits over the identity."""
    text = msgspec.json.encode(dict(sorted(identity.items())))
    return hashlib.sha256(text).hexdigest()[:32]


def default_folder(identity: Identity) -> Path:
    """A folder of the user's cache directory (`$XDG_CACHE_HOME`, else `~/.cache`) named by the fingerprint."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "flame" / "artifacts" / fingerprint(identity)


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


def write(folder: Path, identity: Identity, built: Path) -> Artifact:
    """Makes `folder` an artifact of the files in `built`, whole or not at all; two processes may do so at once."""
    files = {path.name: path.read_bytes() for path in sorted(built.iterdir())}
    artifact = Artifact(
        _FORMAT, dict(identity), {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    )
    _replace(folder, artifact, files)
    return artifact


def add_costs(folder: Path, artifact: Artifact, threads: int, costs: Costs) -> Artifact:
    """Writes costs into the artifact, beside those it has."""
    merged = {number: dict(known) for number, known in artifact.costs.items()}
    merged.setdefault(str(threads), {}).update({str(profile): cost for profile, cost in costs.items()})
    updated = msgspec.structs.replace(artifact, costs=merged)
    _write_json(folder / ARTIFACT_FILE, updated)
    return updated


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
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def _replace(folder: Path, artifact: Artifact, files: Mapping[str, bytes]) -> None:
    with replaced_folder(folder) as new:
        for name, data in files.items():
            (new / name).write_bytes(data)
        _write_json(new / ARTIFACT_FILE, artifact)


def _write_json(path: Path, artifact: Artifact) -> None:
    """Through a file of another name, so that a reader sees the old or the new one."""
    text = msgspec.json.format(msgspec.json.encode(artifact), indent=2)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(text + b"\n")
    temporary.replace(path)
