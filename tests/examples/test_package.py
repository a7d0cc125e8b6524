"""The committed package: it loads, is small, and is what training would write."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from examples.movielens import evaluate, evaluation, offline, train
from flame.config import EngineConfig
from flame.engine import package
from flame.examples.movielens import dataset, split
from flame.examples.movielens.columns import Statistics
from flame.examples.movielens.demo import PACKAGE
from flame.examples.movielens.schema import input_schema


def test_it_loads_and_agrees_with_training_and_with_prepare() -> None:
    spec = package.load(PACKAGE).spec
    assert msgspec.to_builtins(spec) == msgspec.to_builtins(train.SPEC)
    assert msgspec.to_builtins(spec.input) == msgspec.to_builtins(input_schema())


def test_it_is_at_most_five_megabytes_and_nothing_else() -> None:
    files = {path.name: path.stat().st_size for path in PACKAGE.iterdir()}
    assert set(files) == {"model.toml", "weights.safetensors"}
    assert sum(files.values()) <= 5_000_000


@pytest.mark.slow
def test_it_beats_popularity_on_later_interactions(real_wheel: Path) -> None:
    data = dataset.read(real_wheel)
    until = split.boundary(data.events)
    asked = evaluation.questions(data.events, until)[::4]
    loaded = package.load(PACKAGE)
    statistics = Statistics.of(split.training(data.events, until), until)
    model = evaluation.measure(asked, offline.answers(loaded.model(), data, loaded.spec.input, until))
    for baseline in (evaluation.popularity(statistics), evaluation.recent_popularity(statistics)):
        popular = evaluation.measure(asked, baseline)
        assert model.auc_like > popular.auc_like + 0.02
        assert model.auc_watch > popular.auc_watch + 0.02
        assert model.ndcg_like > popular.ndcg_like + 0.03


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_served_answers_are_those_of_plain_pytorch(real_wheel: Path) -> None:
    rows = {row.name: row for row in evaluate.evaluate(PACKAGE, EngineConfig(), users=12)}
    plain = rows[evaluate.OFFLINE].measures
    for name in ("flame.Ranker", "flame serve, HTTP"):
        served = rows[name]
        assert served.distance is not None
        assert served.distance <= 1e-4
        assert served.measures.auc_like == pytest.approx(plain.auc_like, abs=1e-4)
        assert served.measures.auc_watch == pytest.approx(plain.auc_watch, abs=1e-4)
