"""Artifacts: what fits is loaded, what does not is named, and writers do not meet."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flame.engine import artifact
from flame.engine.artifact import ARTIFACT_FILE
from flame.engine.spec import Profile, ProfileCost
from flame.errors import ArtifactMismatch

COST = ProfileCost(1.0, 0.5, 0.25)
IDENTITY = {"model": "abc", "backend": "compiled", "cpu": "this one", "torch": "2.13"}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """What a backend has written."""
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / "kernels.so").write_bytes(b"machine code" * 100)
    return folder


@pytest.fixture
def folder(tmp_path: Path, built: Path) -> Path:
    """An artifact."""
    folder = tmp_path / "artifact"
    with artifact.locked(folder):
        artifact.write(folder, IDENTITY, built)
    return folder


def test_what_was_written_is_read(folder: Path) -> None:
    found = artifact.read(folder, IDENTITY)
    assert found is not None
    assert found.identity == IDENTITY
    assert list(found.files) == ["kernels.so"]
    assert (folder / "kernels.so").read_bytes() == b"machine code" * 100


def test_where_there_is_none(tmp_path: Path) -> None:
    assert artifact.read(tmp_path / "nothing", IDENTITY) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "other"}, "model was 'abc', now 'other'"),
        ({"cpu": "that one", "torch": "2.12"}, "cpu was 'this one', now 'that one'; torch was '2.13', now '2.12'"),
        ({"compiler": "g++"}, r"compiler was absent, now 'g\+\+'"),
    ],
)
def test_a_mismatch_names_what_differs(change: dict[str, str], named: str, folder: Path) -> None:
    with pytest.raises(ArtifactMismatch, match=named):
        artifact.read(folder, IDENTITY | change)


def test_long_values_are_cut_in_the_message(folder: Path) -> None:
    with pytest.raises(ArtifactMismatch) as caught:
        artifact.read(folder, IDENTITY | {"cpu": "x" * 5000})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("damage", [b"", b"machine codes", None])
def test_damaged_files_are_named(damage: bytes | None, folder: Path) -> None:
    if damage is None:
        (folder / "kernels.so").unlink()
    else:
        (folder / "kernels.so").write_bytes(damage)
    with pytest.raises(ArtifactMismatch, match=r"'kernels.so' of the artifact is missing or damaged"):
        artifact.read(folder, IDENTITY)


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', '{"format": 1, "identity": {}, "files": {}, "more": 1}'])
def test_an_unreadable_description(text: str, folder: Path) -> None:
    (folder / ARTIFACT_FILE).write_text(text)
    with pytest.raises(ArtifactMismatch, match=r"artifact.json is not readable"):
        artifact.read(folder, IDENTITY)


def test_a_format_of_the_future(folder: Path) -> None:
    content = json.loads((folder / ARTIFACT_FILE).read_text())
    (folder / ARTIFACT_FILE).write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ArtifactMismatch, match="format 99"):
        artifact.read(folder, IDENTITY)


def test_costs_are_kept_by_threads_and_profile(folder: Path) -> None:
    one, two = Profile(1, 512, 128), Profile(2, 512, 128)
    artifact.add_measured(folder, IDENTITY, 1, {one: ProfileCost(3.0, 2.0, 1.0)}, {one: {"rank": "wide"}})
    artifact.add_measured(folder, IDENTITY, 2, {one: ProfileCost(1.5, 1.0, 0.5)}, {})
    again = artifact.read(folder, IDENTITY)
    assert again is not None
    assert again.costs_of([one, two], 1) == {one: ProfileCost(3.0, 2.0, 1.0)}
    assert again.costs_of([one], 2) == {one: ProfileCost(1.5, 1.0, 0.5)}
    assert again.costs_of([one], 3) == {}
    assert again.ways == {"1x512+128": {"rank": "wide"}}


def test_writing_again_leaves_no_file_of_before(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("not ours")
    other = tmp_path / "other"
    other.mkdir()
    (other / "graph.xml").write_text("<net/>")
    with artifact.locked(folder):
        artifact.write(folder, IDENTITY | {"backend": "openvino"}, other)
    assert {path.name for path in folder.iterdir()} == {".lock", ARTIFACT_FILE, "graph.xml", "notes.txt"}


def test_writers_at_the_same_time_leave_a_whole_artifact(tmp_path: Path, built: Path) -> None:
    folder = tmp_path / "artifact"

    def write(_: int) -> None:
        with artifact.locked(folder):
            artifact.write(folder, IDENTITY, built)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(24)))
    assert artifact.read(folder, IDENTITY) is not None
    assert {path.name for path in folder.iterdir()} == {".lock", ARTIFACT_FILE, "kernels.so"}


def test_no_cost_is_lost_when_several_write_theirs(folder: Path) -> None:
    profiles = [Profile(users, 512, 128) for users in range(1, 33)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda profile: artifact.add_measured(folder, IDENTITY, 1, {profile: COST}, {}), profiles))
    found = artifact.read(folder, IDENTITY)
    assert found is not None
    assert found.costs_of(profiles, 1) == dict.fromkeys(profiles, COST)


def test_the_fingerprint_is_of_the_contents() -> None:
    assert artifact.fingerprint(IDENTITY) == artifact.fingerprint(dict(reversed(IDENTITY.items())))
    assert len({artifact.fingerprint(IDENTITY | {name: "else"}) for name in IDENTITY}) == len(IDENTITY)
    assert artifact.fingerprint({"a": "b", "c": ""}) != artifact.fingerprint({"a": "", "c": "b"})


def test_the_default_folder_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert artifact.default_folder(IDENTITY) == tmp_path / "flame" / "artifacts" / artifact.fingerprint(IDENTITY)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert artifact.default_folder(IDENTITY).parent == tmp_path / ".cache" / "flame" / "artifacts"
