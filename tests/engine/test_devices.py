"""The setting `engine.device`, and an engine for each device that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flame.config import EngineConfig
from flame.engine import build as building
from flame.engine.backends.base import Engine
from flame.engine.backends.eager import EagerEngine
from flame.engine.backends.eager_backend import EagerBackend
from flame.engine.backends.registry import BuildTarget
from flame.engine.build import build, build_all
from flame.engine.devices import devices, one_device
from flame.engine.package import ModelPackage, load
from flame.engine.spec import Profile
from flame.errors import BackendUnavailable, ConfigError

PROFILES = (Profile(1, 37, 8),)


def with_cards(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As if there were so many."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    card = SimpleNamespace(name="A GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("auto", ["auto"]),
        ("cpu", ["cpu"]),
        ("cuda", ["cuda"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        (" cuda:3 , cuda:0 ", ["cuda:3", "cuda:0"]),
        ("cuda:all", ["cuda:0", "cuda:1", "cuda:2"]),
    ],
)
def test_what_a_setting_names(setting: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with_cards(monkeypatch, 3)
    assert devices(setting) == tuple(names)


@pytest.mark.parametrize("setting", ["cuda:0,cuda:0", "cuda,cuda:1", "cpu,cuda:0", "cpu,cpu", "cuda:0,", "auto,cuda:1"])
def test_several_are_different_cuda_devices_by_number(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.device is '.*cuda:0,cuda:1"):
        devices(setting)


def test_all_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cards(monkeypatch, 0)
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        devices("cuda:all")


def test_where_one_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cards(monkeypatch, 1)
    assert one_device("cuda:all") == "cuda:0"
    with pytest.raises(ConfigError, match="name one device here, such as cuda:2"):
        one_device("cuda:2,cuda:0")


@pytest.fixture
def package() -> ModelPackage:
    return load("preset:tiny-hstu")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Devices that engines were opened on, which are on the CPU in truth; the third card of three is broken."""
    with_cards(monkeypatch, 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found: list[str] = []

    def open_on_cpu(
        self: EagerBackend, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget
    ) -> Engine:
        if target.device == "cuda:2":
            raise BackendUnavailable("the card is broken")
        found.append(target.device)
        return EagerEngine(package, profiles)

    monkeypatch.setattr(EagerBackend, "open", open_on_cpu)
    return found


def test_an_engine_for_each_device_from_one_artifact(
    package: ModelPackage, opened: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[Any] = []
    inner = building.measure
    monkeypatch.setattr(building, "measure", lambda *args: (measured.append(args), inner(*args))[1])
    config = EngineConfig(backend="eager", device="cuda:1,cuda:0", artifact=str(tmp_path / "artifact"))
    engines = build_all(package, config, PROFILES, threads=1)
    assert opened == ["cuda:1", "cuda:0"]
    assert engines[0].costs == engines[1].costs
    assert len({place.folder for _, _, place, _ in measured}) == 1
    for engine in engines:
        engine.close()


def test_engines_that_were_built_are_closed_when_another_cannot_be(
    package: ModelPackage, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[EagerEngine] = []
    inner = EagerEngine.close
    monkeypatch.setattr(EagerEngine, "close", lambda self: (closed.append(self), inner(self))[1])
    with pytest.raises(BackendUnavailable, match="broken"):
        build_all(package, EngineConfig(backend="eager", device="cuda:all"), PROFILES, threads=1)
    assert opened == ["cuda:0", "cuda:1"]
    assert len(closed) >= 2


def test_a_command_for_one_engine_takes_one_device(package: ModelPackage) -> None:
    with pytest.raises(ConfigError, match="name one device here"):
        build(package, EngineConfig(device="cuda:0,cuda:1"), PROFILES)
