"""AUC per precision is measured through the served path, against the eager model."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.movielens import precision, train
from flame.config import EngineConfig
from flame.engine import measuring, package
from flame.engine.random_weights import random_weights
from flame.engine.spec import ProfileCost
from flame.examples.movielens.dataset import Dataset


def test_a_row_for_every_engine_and_one_to_compare_with(
    taste: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs of the profiles are made up: measuring them takes longer than all else, and they change no score."""
    monkeypatch.setattr(measuring, "measure_cost", lambda engine, profile: ProfileCost(1.0, 0.5, 0.5))
    model = tmp_path / "model"
    package.save(model, train.SPEC, random_weights(train.SPEC, seed=1))
    plain, own = precision.measure(model, taste, [EngineConfig(backend="eager", precision="fp32")], users=5)
    assert (plain["backend"], plain["precision"], plain["people"]) == ("eager", "fp32", 5)
    assert plain["auc_like_change"] == plain["largest_score_difference"] == 0
    assert 0 <= plain["auc_watch"] <= 1
    assert own["people"] == 5
    assert 0 < own["largest_score_difference"] < 1e-5, "another code path packs what is served"
    assert abs(own["auc_watch_change"]) < 1e-2
