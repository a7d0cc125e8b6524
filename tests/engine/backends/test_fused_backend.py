"""When the fused backend is taken, what stands in its way elsewhere, and what its artifacts are made of."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch

from flame.config import EngineConfig
from flame.engine.artifact import fingerprint
from flame.engine.backends.fused import backend as module
from flame.engine.backends.fused import compiling, cubins, lanes
from flame.engine.backends.fused.backend import FusedBackend
from flame.engine.backends.fused.precision import PRECISIONS
from flame.engine.backends.fused.program import Tunable
from flame.engine.backends.fused.programs import program_type
from flame.engine.backends.registry import BuildTarget, choose
from flame.engine.build import build
from flame.engine.choice import decide
from flame.engine.kernels import triton_compiler
from flame.engine.kernels.interpreter import Interpreter
from flame.engine.kernels.kernel import Cubin, KernelError, TritonKernel
from flame.engine.package import ModelPackage
from flame.engine.presets import preset, random_weights
from flame.engine.spec import ModuleConfig, Profile
from flame.errors import BackendUnavailable, ConfigError

SPEC = preset("tiny-climber")
TARGET = BuildTarget("auto", "auto", 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one device, of 2018."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "an old card")


@pytest.mark.usefixtures("no_gpu")
def test_auto_without_a_gpu_says_why_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flame"):
        assert choose("auto", SPEC, TARGET)[0] == "compiled"
    assert "backend auto: not fused: fused needs a CUDA device, and PyTorch finds none here" in caplog.messages
    assert "backend auto: compiled on cpu in fp32" in caplog.messages


@pytest.mark.usefixtures("no_gpu")
def test_auto_on_a_cpu_that_was_asked_for_is_not_fused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flame"):
        assert choose("auto", SPEC, BuildTarget("cpu", "auto", 1))[0] == "compiled"
    assert "not fused: fused runs on cuda or cuda:NUMBER, engine.device is 'cpu'" in caplog.text


@pytest.mark.usefixtures("old_gpu")
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("auto", "fused needs compute capability 8.0, an old card has 7.5"),
        ("cuda:1", "engine.device is 'cuda:1', but PyTorch finds 1 CUDA devices here"),
        ("cuda:x", "fused runs on cuda or cuda:NUMBER, engine.device is 'cuda:x'"),
        ("gpu", "fused runs on cuda or cuda:NUMBER, engine.device is 'gpu'"),
    ],
)
def test_a_device_that_will_not_do_is_named(device: str, message: str) -> None:
    with pytest.raises(BackendUnavailable, match=re.escape(message)):
        choose("fused", SPEC, BuildTarget(device, "auto", 1))


def test_a_module_of_ones_own_is_told_before_the_device() -> None:
    own = msgspec.structs.replace(SPEC, climber=None, module=ModuleConfig(file="own.py", class_name="Own"))
    with pytest.raises(BackendUnavailable, match="module of its own: use eager"):
        choose("fused", own, TARGET)


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"needs triton and cuda.bindings: pip install 'flame-serving\[gpu\]'"):
        choose("fused", SPEC, TARGET)


def test_kernels_that_cannot_be_imported_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("libtriton.so: cannot open shared object file")

    monkeypatch.setattr(module, "_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(module, "_capability", lambda device: 90)
    monkeypatch.setattr(module, "kernels_of", broken)
    with pytest.raises(BackendUnavailable, match=r"cannot import its kernels: libtriton.so"):
        choose("fused", SPEC, TARGET)
    assert choose("auto", SPEC, TARGET)[0] != "fused"


def test_auto_becomes_bf16_on_the_first_device() -> None:
    assert FusedBackend().resolve(TARGET) == BuildTarget("cuda", "bf16", 1)
    asked = BuildTarget("cuda:1", "fp16", 4, ("graph",))
    assert FusedBackend().resolve(asked) == BuildTarget("cuda:1", "fp16", 1, ("graph",))


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ConfigError, match=r"engine.without names \['heads'\]; parts are stack, feed-forward"):
        FusedBackend().require(SPEC, TARGET._replace(without=("heads",)))


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_only_fused_has_parts_to_leave_out(backend: str) -> None:
    config = EngineConfig(backend=backend, without=("graph",))
    package = ModelPackage(SPEC, random_weights(SPEC, 0), None, "a fingerprint")
    with pytest.raises(BackendUnavailable, match=f"{backend} has no parts to leave out, engine.without is"):
        build(package, config, [Profile(1, 5, 3)])


def test_the_identity_tells_precision_device_card_and_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(FusedBackend, "require", lambda self, spec, target: None)
    card = {"gpu": "A GPU", "capability": "9.0", "driver": "1"}
    monkeypatch.setattr("flame.engine.choice.graphics_card", lambda device: card)
    package = ModelPackage(SPEC, random_weights(SPEC, 0), None, "a fingerprint")

    def located(**settings: object) -> str:
        config = msgspec.convert({"backend": "fused", **settings}, EngineConfig)
        return fingerprint(decide(package, config, [Profile(1, 5, 3)]).identity)

    base = located()
    assert base == located(precision="bf16", device="cuda", threads=3)
    assert base == located(device="cuda:1"), "cards of one kind share an artifact"
    others = [
        located(precision="fp16"),
        located(precision="fp32"),
        located(without=["graph"]),
        located(without=["graph", "head"]),
    ]
    assert others[-1] == located(without=["head", "graph", "head"])
    card["gpu"] = "another GPU"
    assert len({base, *others, located()}) == 6


def test_climber_has_ways_that_a_build_can_choose_from() -> None:
    base = preset("flame-base")
    limits = msgspec.structs.replace(base.input, item_id=msgspec.structs.replace(base.input.item_id, vocabulary=9))
    spec = msgspec.structs.replace(base, input=limits, climber=msgspec.structs.replace(base.climber, layers=2))
    weights = random_weights(spec, 0)
    program = program_type(spec)(spec, PRECISIONS["bf16"], Interpreter(), weights, frozenset(), 90)
    assert isinstance(program, Tunable)
    one, many = Profile(1, 512, 128), Profile(32, 512, 128)
    assert set(program.ways(one, "rank")) == set(program.ways(many, "rank"))
    assert program.ways(one, "rank")[0] != program.ways(many, "rank")[0]
    for kind in ("rank", "encode", "score"):
        program.take(many, kind, program.ways(many, kind)[-1])
    apart = program_type(spec)(spec, PRECISIONS["bf16"], Interpreter(), weights, frozenset({"stack"}), 90)
    assert isinstance(apart, Tunable)
    assert apart.ways(one, "rank") == ()


def fake_driver(monkeypatch: pytest.MonkeyPatch, refuses: str = "") -> list[str]:
    """As if there were a device, whose driver is open or refuses; gives what happened to it."""
    driver = pytest.importorskip("flame.engine.kernels.driver", reason="cuda-bindings is not installed")
    seen: list[str] = []

    class Fake:
        def __init__(self, found: list[Cubin], device: torch.device) -> None:
            self.device = device
            if refuses:
                raise KernelError(refuses)
            seen.append("open")

        def close(self) -> None:
            seen.append("closed")

    monkeypatch.setattr(driver, "Driver", Fake)
    monkeypatch.setattr(module, "_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(module, "_capability", lambda device: 90)
    return seen


def opened(folder: Path) -> object:
    cubins.write(folder, [])
    package = ModelPackage(SPEC, random_weights(SPEC, 0), None, "a fingerprint")
    return FusedBackend().open(package, [Profile(1, 5, 3)], folder, BuildTarget("cuda", "bf16", 1))


def test_machine_code_that_does_not_load_is_a_reason_for_another_backend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_driver(monkeypatch, "kernel tokens: CUDA_ERROR_NO_BINARY_FOR_GPU")
    with pytest.raises(BackendUnavailable, match="fused cannot be loaded onto cuda:0: kernel tokens: CUDA_ERROR_NO"):
        opened(tmp_path)


def test_weights_without_room_leave_no_machine_code_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = fake_driver(monkeypatch)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "program_type", lambda spec: full)
    with pytest.raises(BackendUnavailable, match="fused cannot be loaded onto cuda:0: CUDA out of memory"):
        opened(tmp_path)
    assert seen == ["open", "closed"]


def test_a_compiler_that_does_not_start_ends_those_that_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        if started:
            raise OSError("cannot allocate memory")
        started.append(popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[0]

    popen = subprocess.Popen
    monkeypatch.setattr(compiling, "usable_cores", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(OSError, match="cannot allocate memory"):
        compiling.compile_all(compiling.Order(SPEC, "bf16", (), 90), tmp_path)
    assert started[0].returncode is not None


def test_a_kernel_that_wants_scratch_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wants = SimpleNamespace(metadata=SimpleNamespace(global_scratch_size=128, name="attend"))
    monkeypatch.setattr(triton_compiler, "_compiled", lambda *_: wants)
    function = SimpleNamespace(arg_names=[])
    with pytest.raises(KernelError, match="kernel attend-64 wants 128 bytes of scratch memory"):
        triton_compiler.compile_triton(TritonKernel("attend-64", function, {}, {}), 90)


def test_a_launch_is_short_where_the_last_one_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long launch is awaited asleep, and awake again after some, since a thread that slept knows no better."""
    asleep = lanes._TRUSTED
    took = iter([200e-6, 200e-6, 5e-3, *[400e-6] * asleep, 5e-3, *[400e-6] * asleep, 200e-6, 200e-6])
    now, told = [0.0], []

    def run(*, short: bool) -> None:
        told.append(short)
        now[0] += next(took)

    monkeypatch.setattr(lanes, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    launch = lanes.short_or_long(run)
    for _ in range(2 * asleep + 6):
        launch()
    assert told == [True] * 3 + [False] * asleep + [True] + [False] * asleep + [True, True]


def test_other_kernel_sources_make_other_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = FusedBackend().versions()
    assert re.fullmatch(r"\d+\.\d+", before["nvrtc"])
    (tmp_path / "kernel.cu").write_text("// other")
    monkeypatch.setattr(module, "_SOURCES", (*module._SOURCES, tmp_path))
    after = FusedBackend().versions()
    assert after["kernels"] != before["kernels"]
    assert after["triton"] == before["triton"]


def test_compiled_kernels_come_back_from_their_files(tmp_path: Path) -> None:
    kernels = [
        Cubin("a", "entry", b"\x7fELF\0\xff", 128, 49_152, ("*bf16", "i32"), 2),
        Cubin("b-2", "other", b"", 32, 0, (), dependent=True),
    ]
    cubins.write(tmp_path, kernels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.cubin", "b-2.cubin", "kernels.json"]
    assert cubins.read(tmp_path) == kernels
