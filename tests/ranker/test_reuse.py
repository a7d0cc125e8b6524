"""Histories encoded once, by real engines: the scores are those of a ranker that reuses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from flame.config import Config, EngineConfig, OrchestratorConfig
from flame.engine.build import build
from flame.engine.package import ModelPackage
from flame.engine.spec import ProfileCost
from flame.features.pipeline import FeaturePipeline
from flame.metrics import Metrics
from flame.orchestrator.profiles import default_profiles
from flame.ranker import Ranker
from flame.records import RankRequest
from tests.ranker.world import FEATURES, filled_store, history, requests

ENCODES = ProfileCost(rank=10.0, encode=8.0, score=1.0)
RANKS = ProfileCost(rank=10.0, encode=100.0, score=20.0)

Make = Callable[..., Ranker]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture
def ranker(package: ModelPackage, artifact: Path) -> Iterator[Make]:
    """Rankers whose costs are given, so that it is sure what they plan."""
    made: list[Ranker] = []

    def make(backend: str, cost: ProfileCost, **settings: object) -> Ranker:
        config = Config(orchestrator=OrchestratorConfig(users=(1, 3), candidates=(7, 23), **settings))
        profiles = default_profiles(package.spec, config.orchestrator)
        folder = artifact / f"{package.spec.name}-{backend}"
        engine = build(package, EngineConfig(backend=backend, artifact=str(folder)), profiles, threads=1)
        engine.costs = dict.fromkeys(profiles, cost)
        schema = package.spec.input
        features = FeaturePipeline(schema, filled_store(schema), FEATURES, Metrics())
        made.append(Ranker(engine, features, config))
        return made[-1]

    yield make
    for one in made:
        one.close()


def pages(package: ModelPackage, count: int) -> list[RankRequest]:
    """Few histories, of every length, asked for again and again with other candidates and other contexts."""
    rng = np.random.default_rng(4)
    schema = package.spec.input
    histories = [history(schema, events, rng) for events in (0, 1, schema.max_history // 2, schema.max_history)]
    return [
        replace(request, history=histories[number % 4], scenario=(number // 40) % schema.scenarios, tasks=())
        for number, request in enumerate(requests(schema, count))
    ]


def test_scores_are_bitwise_those_without_reuse(ranker: Make, package: ModelPackage) -> None:
    asked = pages(package, 80)
    reusing = ranker("compiled", ENCODES, keep_states=6, executors=2)
    encoding = ranker("compiled", ENCODES, keep_states=0)
    ranking = ranker("compiled", RANKS, keep_states=0)
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(reusing.rank, asked))
    for request, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer.scores, encoding.rank(request).scores)
        np.testing.assert_array_equal(answer.scores, ranking.rank(request).scores)
    reused = sum(answer.history_reused for answer in answers)
    assert reused >= 60
    assert reusing.statistics().reused == reused
    assert encoding.statistics().reused == ranking.statistics().reused == 0


def test_the_oracle_scores_against_a_kept_history_as_it_scores_without(ranker: Make, package: ModelPackage) -> None:
    asked = pages(package, 24)
    reusing, encoding = ranker("eager", ENCODES, keep_states=9), ranker("eager", ENCODES, keep_states=0)
    for request in asked:
        answer = reusing.rank(request)
        np.testing.assert_allclose(answer.scores, encoding.rank(request).scores, rtol=1e-5, atol=1e-6)
    assert reusing.statistics().reused >= 12


def test_a_response_tells_that_the_history_was_reused(ranker: Make, package: ModelPackage) -> None:
    one = ranker("compiled", ENCODES, keep_states=2)
    request = replace(pages(package, 4)[3], candidates=np.arange(1, 8))
    first, second = one.rank(request), one.rank(replace(request, candidates=np.arange(5, 12)))
    assert (first.history_reused, first.launches) == (False, 2)
    assert (second.history_reused, second.launches) == (True, 1)
    changed = replace(request, scenario=(request.scenario + 1) % package.spec.input.scenarios)
    if changed.scenario != request.scenario:
        assert not one.rank(changed).history_reused
