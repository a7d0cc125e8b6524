"""The fused backend on a GPU: built, served from its artifact, validated, shared by threads, closed."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flame.config import EngineConfig
from flame.engine.backends.base import Engine
from flame.engine.backends.eager import EagerEngine
from flame.engine.build import build
from flame.engine.package import ModelPackage, load
from flame.engine.probe import Packed, Probe
from flame.engine.sampling import random_words
from flame.engine.spec import Profile
from flame.engine.validate import validate
from flame.errors import ExecutionError

pytestmark = pytest.mark.gpu

TINY = (Profile(1, 37, 8), Profile(3, 20, 23))
PAPER = (Profile(1, 512, 128), Profile(4, 512, 100))
MODELS = [
    *[
        (f"preset:{name}", TINY)
        for name in ("tiny-climber", "tiny-climber-bias", "tiny-hstu", "tiny-hstu-bidirectional")
    ],
    ("preset:flame-base", PAPER),
    ("preset:flame-long", (Profile(2, 1024, 256),)),
]
Build = Callable[..., Engine]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the artifacts of this file are kept, so that each is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """Built engines, closed in the end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    engines: list[Engine] = []

    def make(package: ModelPackage, profiles: tuple[Profile, ...] = TINY, **settings: object) -> Engine:
        engines.append(build(package, EngineConfig(**settings), profiles))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return load("preset:tiny-climber")


def full(engine: Engine, profile: Profile, seed: int = 0) -> Packed:
    """A launch with all of its profile in use."""
    lengths = [[sequence.capacity(profile.history) for sequence in engine.spec.input.sequences]] * profile.users
    layout = engine.spec.layout(profile)
    counts = [profile.candidates] * profile.users
    return Packed(
        layout, random_words(engine.spec, layout, lengths, counts, np.random.default_rng(seed)), profile.users
    )


def test_auto_takes_fused_in_bf16_and_says_so(
    make: Build, package: ModelPackage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flame"):
        engine = make(package)
    assert (engine.backend, engine.device, engine.precision) == ("fused", "cuda:0", "bf16")
    assert "backend auto: fused on cuda in bf16" in caplog.messages
    assert all(0 < part < 100 for cost in engine.costs.values() for part in (cost.rank, cost.encode, cost.score))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("model", "profiles"), MODELS)
def test_a_model_passes_validation(make: Build, model: str, profiles: tuple[Profile, ...], precision: str) -> None:
    package = load(model)
    engine = make(package, profiles, backend="fused", precision=precision)
    report = validate(engine, EagerEngine(package, profiles, "cuda"), requests=24)
    assert report.passed, report
    assert all(result.worst == 0 for result in report.isolation)


@pytest.mark.parametrize("part", ["stack", "feed-forward", "tokens", "head", "graph"])
def test_a_model_without_a_part_passes_validation(make: Build, package: ModelPackage, part: str) -> None:
    engine = make(package, backend="fused", without=(part,))
    assert validate(engine, EagerEngine(package, TINY, "cuda"), requests=8).passed


def test_threads_with_buffers_of_their_own_do_not_meet(make: Build) -> None:
    profile = Profile(2, 512, 128)
    engine = make(load("preset:flame-base"), (profile,), backend="fused")
    work = [(Probe(engine), full(engine, profile, seed)) for seed in range(3)]
    wanted = [probe.rank(profile, packed) for probe, packed in work]
    wrong: list[int] = []

    def run(index: int) -> None:
        probe, packed = work[index]
        for turn in range(60):
            found = probe.rank(profile, packed) if turn % 3 else probe.encode_and_score(profile, packed)
            if not all((one == other).all() for one, other in zip(found, wanted[index], strict=True)):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_every_way_gives_the_same_bits(make: Build) -> None:
    profile = Profile(2, 512, 128)
    engine = make(load("preset:flame-base"), (profile,), backend="fused")
    packed = full(engine, profile)
    wanted = Probe(engine).rank(profile, packed)
    ways = engine.ways(profile)
    for turn in range(max(map(len, ways.values()), default=0)):
        for kind, names in ways.items():
            engine.take(profile, kind, names[turn % len(names)])
        probe = Probe(engine)
        for found in (probe.rank(profile, packed), probe.encode_and_score(profile, packed)):
            assert all((one == other).all() for one, other in zip(found, wanted, strict=True))


def test_a_launch_allocates_nothing(make: Build, package: ModelPackage) -> None:
    engine = make(package, backend="fused")
    probe, packed = Probe(engine), full(engine, TINY[1])
    probe.rank(TINY[1], packed)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(3):
        probe.rank(TINY[1], packed)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_memory_comes_back(make: Build, package: ModelPackage) -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    engine = make(package, backend="fused")
    buffers, state = engine.buffers(TINY[1]), engine.state(37)
    assert torch.cuda.memory_allocated() > before
    engine.close()
    del buffers, state
    assert torch.cuda.memory_allocated() == before


SECOND_START = """
import json
import flame.engine.backends.fused.backend as backend
from flame.config import EngineConfig
from flame.engine.build import build
from flame.engine.package import load
from flame.engine.spec import Profile

def refuse(*_):
    raise AssertionError("compiled again")

backend.compile_all = refuse
engine = build(load("preset:tiny-climber"), EngineConfig(backend="fused"), [Profile(1, 37, 8), Profile(3, 20, 23)])
print(json.dumps({str(profile): cost.rank for profile, cost in engine.costs.items()}))
engine.close()
"""


def test_a_second_start_compiles_and_measures_nothing(make: Build, package: ModelPackage, cache: Path) -> None:
    engine = make(package, backend="fused")
    answer = child(SECOND_START)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {str(profile): cost.rank for profile, cost in engine.costs.items()}


FAILING = """
from flame.config import EngineConfig
from flame.engine.build import build
from flame.engine.package import load
from flame.engine.spec import Profile
from flame.errors import ExecutionError

profile = Profile(1, 37, 8)
engine = build(load("preset:tiny-climber"), EngineConfig(backend="fused"), [profile])
buffers, state = engine.buffers(profile), engine.state(37)
engine.encode(buffers, [state])
buffers.layout.views(buffers.words).header[:, 1] = 8
state.memory = type("Nowhere", (), {"data_ptr": lambda self: 1 << 46})()
for _ in range(2):
    try:
        engine.score(buffers, [state])
    except ExecutionError as error:
        print("told:", error, flush=True)
import os
os._exit(0)
"""


@pytest.mark.usefixtures("make")
def test_a_launch_that_fails_is_an_execution_error() -> None:
    answer = child(FAILING)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("told: the launch failed") == 2, answer.stdout


def child(program: str) -> subprocess.CompletedProcess[str]:
    """A fresh process: a failed kernel ends the device's context for good."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_a_device_without_room_is_told(make: Build, package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(package, backend="fused")
    huge = SimpleNamespace(state_bytes=lambda capacity: 1 << 50)
    monkeypatch.setattr(engine, "_program", huge)
    with pytest.raises(ExecutionError, match=r"a state for 37 events failed: .*out of memory"):
        engine.state(37)
