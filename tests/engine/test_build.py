"""Building: the chosen backend, its artifact, the costs, and what goes wrong on the way."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from flame.config import EngineConfig
from flame.engine.artifact import ARTIFACT_FILE, fingerprint
from flame.engine.backends import compiled_model
from flame.engine.backends.eager import EagerEngine
from flame.engine.backends.registry import NAMES, backend
from flame.engine.build import build
from flame.engine.choice import decide
from flame.engine.kernels.cpu import compiler
from flame.engine.matrix_rate import matrix_rate
from flame.engine.package import ModelPackage, load, save
from flame.engine.presets import random_weights
from flame.engine.spec import ModelSpec, Profile
from flame.engine.validate import validate
from flame.errors import ArtifactMismatch, BackendUnavailable, ConfigError

PROFILES = (Profile(1, 37, 8), Profile(2, 37, 23))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's cache directory that the tests of this file share, so that few of them compile."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return load("preset:tiny-hstu")


@pytest.fixture
def no_compiling(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one build in this cache, compiling is an error."""
    build(package, EngineConfig(), PROFILES, threads=1).close()

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr("flame.engine.backends.compiled_backend.compile_library", refuse)


def test_auto_builds_an_engine_that_passes_validation(package: ModelPackage) -> None:
    steps: list[tuple[str, int, int]] = []
    engine = build(package, EngineConfig(), PROFILES, threads=2, force=True, progress=lambda *step: steps.append(step))
    assert engine.backend == "compiled"
    assert tuple(engine.costs) == engine.profiles == PROFILES
    assert all(0 < part < 1e4 for cost in engine.costs.values() for part in (cost.rank, cost.encode, cost.score))
    assert steps[0] == ("building compiled", 0, 1)
    assert ("measuring profiles", 2, 2) in steps
    assert steps[-1] == ("validating", 4, 4)
    assert validate(engine, EagerEngine(package, PROFILES), requests=6).passed
    engine.close()


@pytest.mark.usefixtures("no_compiling")
def test_an_artifact_that_fits_is_loaded_with_its_costs(package: ModelPackage) -> None:
    steps: list[str] = []
    first = build(package, EngineConfig(), PROFILES, threads=1)
    again = build(package, EngineConfig(), PROFILES, threads=1, progress=lambda step, *_: steps.append(step))
    assert again.costs == first.costs
    assert steps == []
    first.close()
    again.close()


@pytest.mark.usefixtures("no_compiling")
def test_a_new_profile_or_number_of_threads_is_only_measured(package: ModelPackage) -> None:
    known = build(package, EngineConfig(), PROFILES, threads=1)
    more = build(package, EngineConfig(), [*PROFILES, Profile(3, 5, 1)], threads=1)
    assert {profile: more.costs[profile] for profile in PROFILES} == known.costs
    assert Profile(3, 5, 1) in more.costs
    wider = build(package, EngineConfig(threads=2), PROFILES)
    assert wider.costs != known.costs
    for engine in (known, more, wider):
        engine.close()


def test_a_folder_of_ones_own_is_used_and_checked(package: ModelPackage, tmp_path: Path) -> None:
    config = EngineConfig(backend="eager", artifact=str(tmp_path / "mine"))
    build(package, config, PROFILES, threads=1).close()
    assert (tmp_path / "mine" / ARTIFACT_FILE).is_file()
    other = msgspec.structs.replace(package.spec, version="2")
    changed = ModelPackage(other, package.weights, None, "another fingerprint")
    with pytest.raises(ArtifactMismatch, match=r"model was .*, now 'another fingerprint'"):
        build(changed, config, PROFILES, threads=1)
    build(changed, config, PROFILES, threads=1, force=True).close()
    with pytest.raises(ArtifactMismatch, match=r"now '[0-9a-f]{32}'"):
        build(package, config, PROFILES, threads=1)


def test_other_sources_make_another_artifact(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = EngineConfig(backend="compiled", artifact=str(tmp_path))
    build(package, config, PROFILES[:1], threads=1).close()
    changed = tmp_path / "src"
    changed.mkdir()
    for source in compiler.SOURCES.iterdir():
        (changed / source.name).write_bytes(source.read_bytes() + b"\n")
    monkeypatch.setattr("flame.engine.backends.compiled_backend.SOURCES", changed)
    with pytest.raises(ArtifactMismatch, match="kernels was"):
        build(package, config, PROFILES[:1], threads=1)


def test_the_code_that_gives_kernels_their_constants_belongs_to_the_identity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = dict(backend("compiled").versions())
    changed = tmp_path / "compiled_model.py"
    changed.write_bytes(Path(compiled_model.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(compiled_model, "__file__", str(changed))
    after = dict(backend("compiled").versions())
    assert after.pop("kernels") != before.pop("kernels")
    assert after == before


def test_a_compiler_that_fails_is_quoted(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'unknown option -std=c++20' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    folder = tmp_path / "artifact"
    with pytest.raises(BackendUnavailable, match=r"unknown option -std=c\+\+20"):
        build(package, EngineConfig(backend="compiled", artifact=str(folder)), PROFILES, threads=1)
    assert not (folder / ARTIFACT_FILE).exists()


def test_a_module_of_ones_own_is_built_for_eager(own_source: Path, own_spec: ModelSpec, tmp_path: Path) -> None:
    weights = random_weights(own_spec, 0, module_source=own_source)
    save(tmp_path / "own", own_spec, weights, module_source=own_source)
    package = load(tmp_path / "own", allow_code=True)
    engine = build(package, EngineConfig(), [Profile(1, 5, 3)], threads=1)
    assert engine.backend == "eager"
    assert np.isfinite(engine.costs[Profile(1, 5, 3)].rank)
    engine.close()


def test_an_artifact_that_cannot_be_written_still_serves(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = EngineConfig(backend="eager", artifact=str(tmp_path))
    build(package, config, PROFILES[:1], threads=1).close()

    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr("flame.engine.artifact.locked", refuse)
    engine = build(package, config, PROFILES, threads=1)
    assert set(engine.costs) == set(PROFILES)
    assert "read-only file system" in caplog.text
    engine.close()


def test_no_profiles_and_unknown_backends_are_refused(package: ModelPackage) -> None:
    with pytest.raises(ConfigError, match="at least one profile"):
        build(package, EngineConfig(), [])
    with pytest.raises(ConfigError, match="backends are auto"):
        build(package, EngineConfig(backend="warp"), PROFILES)


@pytest.mark.parametrize("profile", [Profile(0, 37, 8), Profile(1, 38, 8), Profile(1, 37, 24), Profile(1, 37, 0)])
def test_shapes_beyond_the_model_are_refused(package: ModelPackage, profile: Profile) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"profile {profile} is beyond the model")):
        build(package, EngineConfig(backend="eager"), [PROFILES[0], profile])


def test_a_folder_that_cannot_be_is_told_with_what_to_do(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for config in (
        EngineConfig(backend="eager", artifact=str(tmp_path / "file")),
        EngineConfig(backend="eager", artifact=str(tmp_path / "file" / "below")),
    ):
        with pytest.raises(ConfigError, match=r"cannot be kept in .*file.*: .*engine\.artifact.*XDG_CACHE_HOME"):
            build(package, config, PROFILES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be kept in"):
        build(package, EngineConfig(backend="eager"), PROFILES)


def test_a_library_that_does_not_load_is_told(package: ModelPackage, tmp_path: Path) -> None:
    config = EngineConfig(backend="compiled", artifact=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "flame.engine.backends.compiled_backend.compile_library",
            lambda source, constants, library: library.write_bytes(b"no library"),
        )
        with pytest.raises(BackendUnavailable, match=r"compiled cannot load what it built .*engine\.artifact"):
            build(package, config, PROFILES, threads=1)


def test_a_user_without_a_home_is_told(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match=r"no home folder: set engine\.artifact"):
        decide(package, EngineConfig(backend="eager"), PROFILES)


def test_another_kind_of_device_makes_another_artifact(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = SimpleNamespace(name="A GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    prints = [
        fingerprint(decide(package, EngineConfig(backend="eager", device=device), PROFILES).identity)
        for device in ("auto", "cpu", "cuda", "cuda:1")
    ]
    assert prints[0] == prints[1]
    assert prints[2] == prints[3], "GPUs of one kind share it"
    assert len(set(prints)) == 2


def test_the_names_are_those_of_the_documentation() -> None:
    assert NAMES == ("auto", "fused", "compiled", "openvino", "eager")


def test_the_matrix_rate_is_a_rate_and_leaves_threads_alone() -> None:
    before = torch.get_num_threads()
    assert 0.1 < matrix_rate(1, size=128, rounds=2) < 1e5
    assert torch.get_num_threads() == before
