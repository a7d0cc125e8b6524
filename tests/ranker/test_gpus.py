"""A ranker on GPUs: several of them answer as one, and a context that is spoiled for good is told, not waited for."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from flame.config import Config, EngineConfig, OrchestratorConfig
from flame.engine.backends.base import Engine
from flame.engine.build import build_all
from flame.engine.package import ModelPackage
from flame.engine.spec import ProfileCost
from flame.ranker import Ranker
from flame.records import RankRequest
from tests.ranker.world import FEATURES, filled_store, requests

pytestmark = pytest.mark.gpu


def load(package: ModelPackage, folder: Path, device: str, executors: int) -> Ranker:
    config = Config(
        features=FEATURES,
        engine=EngineConfig(backend="fused", device=device, artifact=str(folder)),
        orchestrator=OrchestratorConfig(candidates=(9, 23), users=(1, 2), executors=executors, max_in_flight=200),
    )
    return Ranker.load(f"preset:{package.spec.name}", config, store=filled_store(package.spec.input))


@pytest.mark.usefixtures("_several")
def test_all_gpus_of_the_host_answer_as_one(package: ModelPackage, tmp_path: Path) -> None:
    asked = requests(package.spec.input, 100, seed=6)
    with load(package, tmp_path, "cuda:0", 1) as one:
        expected = [one.rank(request).scores for request in asked]
    with load(package, tmp_path, "cuda:all", 2) as ranker:
        assert len(ranker.devices) == torch.cuda.device_count()
        for _ in range(3):
            with ThreadPoolExecutor(16) as clients:
                answers = list(clients.map(ranker.rank, asked))
            for scores, answer in zip(expected, answers, strict=True):
                np.testing.assert_array_equal(answer.scores, scores)
        for device in ranker.devices:
            busy = ranker.metrics.registry.get_sample_value("flame_busy_seconds_total", {"device": device})
            assert busy, f"{device} ran nothing"


@pytest.mark.usefixtures("_several")
def test_a_history_is_reused_on_its_gpu(package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With costs by which encoding pays, as it hardly does for models as small as these."""

    def with_costs(*arguments: Any, **options: Any) -> list[Engine]:
        engines = build_all(*arguments, **options)
        for engine in engines:
            engine.costs = dict.fromkeys(engine.profiles, ProfileCost(2.0, 1.0, 0.5))
        return engines

    monkeypatch.setattr("flame.ranker.build_all", with_costs)
    with load(package, tmp_path, "cuda:all", 1) as ranker:
        first = RankRequest(user=9, candidates=np.arange(1, 20))
        ranker.rank(first)
        pages = [ranker.rank(replace(first, candidates=np.arange(page, page + 15))) for page in range(1, 60)]
    assert sum(page.history_reused for page in pages) > len(pages) / 2


@pytest.fixture
def _several() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU is not several")


SPOILED = """
import os, sys
import numpy as np, torch
from flame.config import Config, EngineConfig, OrchestratorConfig
from flame.errors import EngineFailed, ExecutionError
from flame.ranker import Ranker
from flame.records import RankRequest
from flame.engine.presets import preset
from tests.ranker.world import FEATURES, filled_store

config = Config(
    features=FEATURES,
    engine=EngineConfig(backend="fused", artifact=sys.argv[1]),
    orchestrator=OrchestratorConfig(candidates=(9,), executors=2, keep_states=4),
)
ranker = Ranker.load("preset:tiny-climber", config, store=filled_store(preset("tiny-climber").input))
request = RankRequest(user=3, candidates=np.arange(1, 5))
ranker.rank(request)


def spoil(buffers, users):
    torch.zeros(4, device="cuda")[torch.tensor([1 << 40], device="cuda")].cpu()


ranker._engines[0].rank = ranker._engines[0].score = spoil
for _ in range(100):
    try:
        ranker.rank(request)
    except ExecutionError as error:
        print("failed:", error, flush=True)
    except EngineFailed as error:
        print("over:", error, flush=True)
        break
ranker.failed.result(120)
print("not ready", flush=True)
os._exit(0)
"""


def test_a_spoiled_context_ends_in_not_ready(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", SPOILED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "failed:" in ran.stdout
    assert "over:" in ran.stdout
    assert "not ready" in ran.stdout
