"""Which backend runs: asked for by name, or the first that can."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import msgspec
import pytest

from flame.engine.backends.registry import NAMES, BuildTarget, backend, choose
from flame.engine.presets import preset
from flame.engine.spec import ModelSpec, ModuleConfig
from flame.errors import BackendUnavailable, ConfigError

TARGET = BuildTarget("auto", "auto", 1)
SPEC = preset("tiny-climber")


@pytest.fixture
def own_module() -> ModelSpec:
    module = ModuleConfig(file="own.py", class_name="Own")
    return msgspec.structs.replace(SPEC, climber=None, module=module)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in [name for name in sys.modules if name.startswith("flame.engine.backends.openvino")]:
        monkeypatch.delitem(sys.modules, name)


def test_auto_takes_the_compiled_backend() -> None:
    assert choose("auto", SPEC, TARGET)[0] == "compiled"


@pytest.mark.usefixtures("no_compiler", "no_openvino")
def test_auto_falls_back_to_eager_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flame"):
        assert choose("auto", SPEC, TARGET)[0] == "eager"
    said = "\n".join(caplog.messages)
    assert "not compiled" in said
    assert "no C++ compiler" in said
    assert "not openvino" in said


@pytest.mark.usefixtures("no_compiler")
def test_auto_takes_openvino_where_there_is_no_compiler() -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    assert choose("auto", SPEC, TARGET)[0] == "openvino"


@pytest.mark.usefixtures("no_compiler")
def test_compiled_by_name_needs_a_compiler() -> None:
    with pytest.raises(BackendUnavailable, match=r"no C\+\+ compiler"):
        choose("compiled", SPEC, TARGET)


def test_a_compiler_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    with pytest.raises(BackendUnavailable, match=f"{tmp_path}/cxx' does not exist"):
        choose("compiled", SPEC, TARGET)


@pytest.mark.usefixtures("no_openvino")
def test_a_backend_that_cannot_be_imported_tells_the_cause() -> None:
    with pytest.raises(BackendUnavailable, match="'openvino' cannot be imported") as caught:
        backend("openvino")
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("auto", "eager")])
def test_a_module_of_ones_own_runs_in_eager_only(name: str, own_module: ModelSpec) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    with pytest.raises(BackendUnavailable, match="module of its own: use eager"):
        choose(name, own_module, TARGET)
    assert choose("auto", own_module, TARGET)[0] == "eager"


@pytest.mark.parametrize(
    ("target", "message"), [(("cuda:0", "auto"), "runs on a CPU"), (("cpu", "bf16"), "runs in fp32")]
)
def test_compiled_is_for_cpus_and_fp32(target: tuple[str, str], message: str) -> None:
    with pytest.raises(BackendUnavailable, match=message):
        choose("compiled", SPEC, BuildTarget(*target, 1))


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "mps", "", "cuda:", "cuda:x", "cudax", "cuda:64"])
def test_eager_names_a_device_that_is_none(device: str) -> None:
    with pytest.raises(BackendUnavailable, match=re.escape(f"engine.device is {device!r}")):
        choose("eager", SPEC, BuildTarget(device, "auto", 1))


def test_auto_without_any_way_lists_all_reasons() -> None:
    with pytest.raises(BackendUnavailable, match=r"fused: .*compiled: .*openvino: .*eager: .*'bf16'"):
        choose("auto", SPEC, BuildTarget("cpu", "bf16", 1))


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'fast'; backends are auto, fused, compiled, openvino, eager"):
        choose("fast", SPEC, TARGET)
