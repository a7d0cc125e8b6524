"""The gate: an engine that differs from the oracle never serves, whoever asks for it and however often."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flame.config import EngineConfig
from flame.engine import gate, measuring
from flame.engine.artifact import ARTIFACT_FILE
from flame.engine.backends import compiled, registry
from flame.engine.backends.base import Engine
from flame.engine.backends.eager import EagerEngine
from flame.engine.backends.registry import Backend, BuildTarget
from flame.engine.build import build, build_artifact
from flame.engine.package import ModelPackage, load
from flame.engine.spec import ModelSpec, Profile, ProfileCost
from flame.errors import BackendUnavailable, EngineError, ExecutionError, ValidationFailed

PROFILES = (Profile(1, 20, 8), Profile(2, 37, 23), Profile(1, 37, 23))


class Quick(EagerEngine):
    """An engine of a backend that is not the oracle, right by itself: a model run as the oracle runs it."""

    backend = "quick"


class Swapped(Quick):
    """Two towers have changed places: plausible scores, and all wrong."""

    def __init__(self, package: ModelPackage, profiles: Sequence[Profile]) -> None:
        weights = dict(package.weights)
        weights["head.towers.out.weight"] = weights["head.towers.out.weight"].flip(0)
        super().__init__(ModelPackage(package.spec, weights, None, "swapped"), profiles)


class Breaks(Quick):
    """Launches fail."""

    def rank(self, buffers: Any, users: int) -> None:
        raise ExecutionError("an illegal address")


class BreaksForGood(Breaks):
    """After a fault nothing works on a GPU, freeing included."""

    def close(self) -> None:
        raise RuntimeError("unspecified launch failure")


class QuickBackend:
    """A backend of the test's own, first among those that `auto` tries."""

    per_profile = False

    def __init__(self, engine: Callable[[ModelPackage, Sequence[Profile]], Engine]) -> None:
        self.engine = engine
        self.opened: list[Engine] = []

    def resolve(self, target: BuildTarget) -> BuildTarget:
        return target.on("cpu", "fp32")

    def require(self, spec: ModelSpec, target: BuildTarget) -> None:
        """Runs everywhere."""

    def versions(self) -> Mapping[str, str]:
        return {"quick": "1"}

    def prepare(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> None:
        (folder / "code").write_text("built")

    def open(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> Engine:
        self.opened.append(self.engine(package, profiles))
        return self.opened[-1]


class UnbuildableBackend(QuickBackend):
    """Its compiler has no room."""

    def prepare(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> None:
        raise OSError(28, "No space left on device")


Offer = Callable[[Any], QuickBackend]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Puts a backend before `eager`, the only others; gives it back."""

    def put(found: QuickBackend) -> QuickBackend:
        known = registry.backend
        monkeypatch.setattr(registry, "_BACKENDS", {"quick": "", "eager": registry._BACKENDS["eager"]})
        monkeypatch.setattr(registry, "backend", lambda name: found if name == "quick" else known(name))
        return found

    return put


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return load("preset:tiny-climber")


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are not the question here, and take long."""
    monkeypatch.setattr(measuring, "measure_cost", lambda engine, profile: ProfileCost(1.0, 1.0, 1.0))


@pytest.fixture
def named(tmp_path: Path) -> EngineConfig:
    return EngineConfig(backend="quick", artifact=str(tmp_path / "engine"))


@pytest.fixture
def auto(tmp_path: Path) -> EngineConfig:
    return EngineConfig(artifact=str(tmp_path / "engine"))


def kept(config: EngineConfig) -> list[dict[str, Any]]:
    content = json.loads((Path(config.artifact) / ARTIFACT_FILE).read_text())
    found: list[dict[str, Any]] = content["validations"]
    return found


@pytest.fixture
def no_comparing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on, comparing is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compared again")

    return lambda: monkeypatch.setattr(gate, "validate", refuse)


def test_the_outcome_is_kept_and_a_later_start_only_reads_it(
    offer: Offer, package: ModelPackage, named: EngineConfig, no_comparing: Callable[[], None]
) -> None:
    offer(QuickBackend(Quick))
    first = build_artifact(package, named, PROFILES, threads=1)
    (validation,) = first.validations
    assert validation.profiles == ("1x20+8", "2x37+23"), "the smallest and the largest"
    assert validation.failures == ()
    assert validation.report["requests"] >= 4
    assert validation.report["seed"] == 0
    assert len(validation.report["tasks"]) == len(package.spec.tasks)
    checks = {result["check"] for result in validation.report["isolation"]}
    assert {"permutation", "split", "other users", "other profile", "encode + score"} <= checks
    no_comparing()
    again = build_artifact(package, named, PROFILES, threads=1)
    assert again.validations == first.validations
    assert len(kept(named)) == 1
    first.engine.close()
    again.engine.close()


def test_a_wrong_engine_by_name_is_refused_now_and_later(
    offer: Offer, package: ModelPackage, named: EngineConfig, no_comparing: Callable[[], None]
) -> None:
    made = offer(QuickBackend(Swapped))
    with pytest.raises(ValidationFailed, match=r"quick does not give .*: \w+: \w+ .* is over 1\.0e-04 and \d+ more"):
        build(package, named, PROFILES, threads=1)
    assert not hasattr(made.opened[0], "_model"), "the engine was closed"
    assert kept(named)[0]["failures"]
    no_comparing()
    with pytest.raises(ValidationFailed, match=r"found before; `flame build --force` looks again") as caught:
        build(package, named, PROFILES, threads=1)
    assert len(made.opened) == 1, "nothing of a refused artifact is loaded"
    assert named.artifact not in str(caught.value)


def test_what_is_furthest_out_is_told_first(offer: Offer, package: ModelPackage, named: EngineConfig) -> None:
    offer(QuickBackend(Swapped))
    with pytest.raises(ValidationFailed):
        build(package, named, PROFILES, threads=1)
    (found,) = kept(named)
    worst = max(found["report"]["tasks"], key=lambda task: task["rms_relative"])
    assert found["failures"][0].startswith(f"{worst['task']}: rms_relative {worst['rms_relative']:.2e}")


def test_building_anew_looks_again(offer: Offer, package: ModelPackage, named: EngineConfig) -> None:
    offer(QuickBackend(Swapped))
    with pytest.raises(ValidationFailed):
        build(package, named, PROFILES, threads=1)
    offer(QuickBackend(Quick))
    build(package, named, PROFILES, threads=1, force=True).close()
    assert [validation["failures"] for validation in kept(named)] == [[]]


def test_auto_passes_over_a_wrong_engine_and_says_so_loudly(
    offer: Offer,
    package: ModelPackage,
    auto: EngineConfig,
    caplog: pytest.LogCaptureFixture,
    no_comparing: Callable[[], None],
) -> None:
    offer(QuickBackend(Swapped))
    built = build_artifact(package, auto, PROFILES, threads=1)
    assert built.engine.backend == "eager"
    assert built.folder == Path(auto.artifact) / "eager"
    assert built.validations == ()
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().startswith("backend auto: quick is passed over: quick does not give the oracle's")
    no_comparing()
    again = build_artifact(package, auto, PROFILES, threads=1)
    assert (again.engine.backend, again.folder) == ("eager", built.folder), "both artifacts are found again"
    built.engine.close()
    again.engine.close()


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (QuickBackend(Breaks), "an illegal address"),
        (QuickBackend(BreaksForGood), "quick: closing it failed: unspecified launch failure"),
        (UnbuildableBackend(Quick), "quick could not be built: [Errno 28] No space left on device"),
    ],
)
def test_auto_passes_over_what_does_not_build_or_run(
    made: QuickBackend,
    told: str,
    offer: Offer,
    package: ModelPackage,
    auto: EngineConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    offer(made)
    engine = build(package, auto, PROFILES, threads=1)
    assert engine.backend == "eager"
    assert told in caplog.text
    engine.close()


def test_auto_with_nothing_left_gives_all_reasons(
    offer: Offer, package: ModelPackage, auto: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(QuickBackend(Swapped))
    eager: Backend = registry.backend("eager")
    monkeypatch.setattr(type(eager), "require", refuse_eager)
    with pytest.raises(BackendUnavailable, match=r"quick: quick does not give the oracle's scores.*eager: not today"):
        build(package, auto, PROFILES, threads=1)


def refuse_eager(*_: object) -> None:
    raise BackendUnavailable("not today")


def test_the_oracle_that_fails_stops_auto_with_its_own_error(
    offer: Offer, package: ModelPackage, auto: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(engine: Engine, profile: Profile) -> ProfileCost:
        raise ExecutionError(f"{engine.backend}: an illegal address")

    offer(QuickBackend(Quick))
    monkeypatch.setattr(measuring, "measure_cost", fail)
    with pytest.raises(ExecutionError, match="eager: an illegal address"):
        build(package, auto, PROFILES, threads=1)


def test_off_compares_nothing_and_serves_what_failed(
    offer: Offer, package: ModelPackage, named: EngineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    off = EngineConfig(backend=named.backend, artifact=named.artifact, validate="off")
    offer(QuickBackend(Swapped))
    build(package, off, PROFILES, threads=1).close()
    assert kept(named) == []
    with pytest.raises(ValidationFailed):
        build(package, named, PROFILES, threads=1)
    build(package, off, PROFILES, threads=1).close()
    assert "quick did not agree with the oracle and runs by engine.validate=off" in caplog.text


def test_profiles_beyond_those_compared_are_compared(offer: Offer, package: ModelPackage, named: EngineConfig) -> None:
    offer(QuickBackend(Quick))
    build(package, named, PROFILES[:1], threads=1).close()
    build(package, named, PROFILES, threads=1).close()
    build(package, named, PROFILES[1:2], threads=1).close()
    assert [validation["profiles"] for validation in kept(named)] == [["1x20+8"], ["1x20+8", "2x37+23"]]


class WrongWhenLarge(Quick):
    """Only a profile with a long history is wrong."""

    def rank(self, buffers: Any, users: int) -> None:
        super().rank(buffers, users)
        buffers.scores[:users] *= 1.01 if buffers.profile.history > 20 else 1.0


def test_a_profile_that_comes_later_can_spoil_an_artifact(
    offer: Offer, package: ModelPackage, named: EngineConfig
) -> None:
    offer(QuickBackend(WrongWhenLarge))
    build(package, named, PROFILES[:1], threads=1).close()
    for _ in range(2):
        with pytest.raises(ValidationFailed):
            build(package, named, PROFILES, threads=1)
    with pytest.raises(ValidationFailed, match="found before"):
        build(package, named, PROFILES[:1], threads=1)


class WritesNothing(Quick):
    """Scores stay as they were: not a number in the end."""

    def rank(self, buffers: Any, users: int) -> None:
        """Does nothing."""


def test_an_engine_that_writes_no_scores_is_refused_and_read_again(
    offer: Offer, package: ModelPackage, named: EngineConfig
) -> None:
    """An infinite error has no JSON number, and the artifact must stay readable."""
    offer(QuickBackend(WritesNothing))
    for _ in range(2):
        with pytest.raises(ValidationFailed, match=r"inf is over"):
            build(package, named, PROFILES, threads=1)


def test_what_cannot_be_kept_is_compared_each_time(
    offer: Offer,
    package: ModelPackage,
    named: EngineConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    offer(QuickBackend(Quick))
    off = EngineConfig(backend=named.backend, artifact=named.artifact, validate="off")
    build(package, off, PROFILES, threads=1).close()

    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr("flame.engine.artifact.locked", refuse)
    for _ in range(2):
        build(package, named, PROFILES, threads=1).close()
    assert caplog.text.count("the validation cannot be kept in the artifact") == 2
    assert kept(named) == []


def test_the_compiled_backend_with_other_weights_is_refused(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real backend: two rows of one weight stand in each other's place."""
    known = compiled.weight_list

    def permuted(spec: ModelSpec, weights: Mapping[str, torch.Tensor]) -> Any:
        name = "head.towers.out.weight"
        return known(spec, {**weights, name: weights[name].flip(0)})

    monkeypatch.setattr(compiled, "weight_list", permuted)
    config = EngineConfig(backend="compiled", artifact=str(tmp_path))
    with pytest.raises(ValidationFailed, match="compiled does not give the oracle's scores"):
        build(package, config, PROFILES, threads=1)


def test_the_oracle_takes_no_more_threads_than_a_launch_and_gives_them_back(package: ModelPackage) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with gate._oracle(package, "cpu", 2):
            assert torch.get_num_threads() == 2
        with gate._oracle(package, "cpu", 8):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_gpu_without_room_for_the_oracle_leaves_it_to_the_cpu(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ModelPackage.model

    def model(self: ModelPackage, device: str = "cpu") -> Any:
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return known(self)

    monkeypatch.setattr(ModelPackage, "model", model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with gate._oracle(package, "cuda:0", 1) as oracle:
        assert oracle.device == "cpu"


def test_the_error_is_one_of_the_engine() -> None:
    assert issubclass(ValidationFailed, EngineError)
