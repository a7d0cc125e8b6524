"""The scores of the whole path in process, against the oracle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from msgspec.structs import replace

from flame.config import Config, EngineConfig, OrchestratorConfig
from flame.engine.package import ModelPackage
from flame.errors import UnknownTask
from flame.ranker import Ranker
from flame.records import RankRequest
from tests.ranker.parts import close_to
from tests.ranker.world import FEATURES, filled_store, history, requests


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="one launch each"),
        pytest.param({"candidates": (3, 7), "executors": 2}, id="split over two executors"),
        pytest.param({"candidates": (5, 23), "users": (1, 3), "executors": 2}, id="split and packed"),
    ],
)
def test_concurrent_requests_get_the_scores_of_the_oracle(bench, settings: dict[str, object]) -> None:
    one = bench(max_in_flight=100, **settings)
    asked = requests(one.spec.input, 60)
    with ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(one.ranker.start, asked))
    for request, answer in zip(asked, answers, strict=True):
        response = answer.result(60)
        assert response.request_id == request.request_id
        close_to(response, one.oracle(request))


def test_the_default_engine_loaded_by_name_agrees_with_the_oracle(bench, package: ModelPackage, tmp_path) -> None:
    one = bench()
    config = Config(
        features=FEATURES,
        engine=EngineConfig(artifact=str(tmp_path / "artifact")),
        orchestrator=OrchestratorConfig(candidates=(9, 23), executors=2),
    )
    steps: list[str] = []
    with Ranker.load(
        f"preset:{package.spec.name}",
        config,
        store=filled_store(package.spec.input),
        progress=lambda step, done, steps_: steps.append(step),
    ) as ranker:
        assert steps, "building reports progress"
        assert ranker.backend != "eager"
        assert ranker.spec == package.spec
        for request in requests(package.spec.input, 30, seed=3):
            response = ranker.rank(request)
            close_to(response, one.oracle(request), 1e-4)
            assert response.backend == ranker.backend


def test_a_split_request_equals_the_same_request_in_one_launch(bench) -> None:
    whole, split = bench(), bench(candidates=(2,))
    request = RankRequest(user=30, candidates=np.arange(1, 24))
    one, many = whole.ranker.rank(request), split.ranker.rank(request)
    assert one.launches == 1
    assert many.launches >= 12
    close_to(many, one.scores)


def test_duplicate_candidates_are_scored_in_place_and_equally(bench) -> None:
    ranker = bench(candidates=(4,)).ranker
    response = ranker.rank(RankRequest(user=7, candidates=np.array([5, 9, 5, 11, 9, 5, 12])))
    np.testing.assert_allclose(response.scores[[2, 5]], response.scores[[0, 0]], atol=1e-6)
    np.testing.assert_allclose(response.scores[4], response.scores[1], atol=1e-6)
    assert len(np.unique(response.scores[:, 0].round(6))) == 4


def test_a_history_sent_equals_the_same_history_stored(bench) -> None:
    one = bench()
    stored = filled_store(one.spec.input).user(31, 99, None)
    assert stored is not None
    request = RankRequest(user=31, candidates=np.arange(1, 12))
    sent = replace(request, history=stored.history)
    close_to(one.ranker.rank(sent), one.ranker.rank(request).scores, 1e-6)
    empty = replace(request, history=history(one.spec.input, 0, np.random.default_rng()))
    assert np.abs(one.ranker.rank(empty).scores - one.ranker.rank(sent).scores).max() > 1e-3


def test_tasks_come_as_asked_for(bench) -> None:
    ranker = bench().ranker
    request = RankRequest(user=7, candidates=np.arange(1, 6))
    full = ranker.rank(request)
    assert full.tasks == ("complete_play", "like", "share")
    some = ranker.rank(replace(request, tasks=("share", "complete_play")))
    assert some.tasks == ("share", "complete_play")
    np.testing.assert_allclose(some.scores, full.scores[:, [2, 0]], atol=1e-6)
    assert some.scores.flags.c_contiguous
    with pytest.raises(UnknownTask):
        ranker.rank(replace(request, tasks=("share", "nonsense")))
