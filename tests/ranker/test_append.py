"""Histories that grow from request to request, by real engines: the scores are those of a ranker that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from flame.config import Config, EngineConfig, OrchestratorConfig
from flame.engine.build import build_all
from flame.engine.package import ModelPackage, save
from flame.engine.presets import preset, random_weights
from flame.engine.spec import ProfileCost
from flame.orchestrator.profiles import default_profiles
from flame.ranker import Ranker
from flame.records import History, RankRequest
from tests.ranker.world import FEATURES, filled_store, history, requests

ENCODES = ProfileCost(rank=10.0, encode=8.0, score=1.0)
LIMIT = 80

Make = Callable[..., Ranker]


@pytest.fixture(scope="module", params=["tiny-climber-appendable", "tiny-hstu-appendable"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and its artifact."""
    spec = preset(request.param)
    spec = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, max_history=LIMIT))
    path = tmp_path_factory.mktemp(request.param)
    save(path / "model", spec, random_weights(spec, 0))
    return path


@pytest.fixture
def ranker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Rankers as they are loaded, but with given costs, so that it is sure what they plan."""
    made: list[Ranker] = []

    def with_costs(package: ModelPackage, config: EngineConfig, *arguments: object, **options: object) -> object:
        engines = build_all(package, config, *arguments, **options)  # type: ignore[arg-type]
        for engine in engines:
            engine.costs = dict.fromkeys(default_profiles(package.spec, SETTINGS), ENCODES)
        return engines

    monkeypatch.setattr("flame.ranker.build_all", with_costs)

    def make(backend: str = "compiled", **settings: object) -> Ranker:
        config = Config(
            features=FEATURES,
            engine=EngineConfig(backend=backend, artifact=str(folder / backend), threads=1),
            orchestrator=msgspec.structs.replace(SETTINGS, **settings),
        )
        schema = preset(folder.name.rstrip("0123456789")).input
        schema = msgspec.structs.replace(schema, max_history=LIMIT)
        made.append(Ranker.load(folder / "model", config, store=filled_store(schema)))
        return made[-1]

    yield make
    for one in made:
        one.close()


SETTINGS = OrchestratorConfig(users=(1, 3), candidates=(7, 23))


def growing(ranker: Ranker, count: int) -> list[RankRequest]:
    """Three users whose histories grow by some events from request to request, past what the model keeps."""
    schema, rng = ranker.spec.input, np.random.default_rng(7)
    lives = [history(schema, 3 * LIMIT, rng) for _ in range(3)]
    had = [30, 31, 60]
    made = []
    for number, request in enumerate(requests(schema, count)):
        user = number % 3
        had[user] += int(rng.integers(0, 4))
        life = lives[user]
        recent = slice(max(0, had[user] - LIMIT), had[user])
        past = History(life.items[recent], life.actions[recent], life.timestamps[recent])
        made.append(replace(request, user=user + 1, history=past, scenario=user % schema.scenarios))
    return made


def appends(ranker: Ranker) -> float:
    found = ranker.metrics.registry.get_sample_value("flame_state_appends_total")
    assert found is not None
    return found


def test_scores_are_bitwise_those_of_whole_histories(ranker: Make) -> None:
    appending, keeping_nothing = ranker(keep_states=6, executors=2), ranker(keep_states=0)
    asked = growing(appending, 90)
    with ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(appending.rank, asked))
    for request, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer.scores, keeping_nothing.rank(request).scores)
    assert appends(appending) > 20
    assert appends(keeping_nothing) == 0


def test_the_oracle_appends_as_well(ranker: Make) -> None:
    appending, keeping_nothing = ranker("eager", keep_states=6), ranker("eager", keep_states=0)
    for request in growing(appending, 30):
        found, whole = appending.rank(request).scores, keeping_nothing.rank(request).scores
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)
    assert appends(appending) > 5
