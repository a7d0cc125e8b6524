"""Scores of the same model through the served path: in process, and over HTTP from a server of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from examples.movielens.evaluation import Question, Scores
from flame.config import Config, EngineConfig, FeaturesConfig
from flame.examples.movielens.schema import TASKS
from flame.examples.movielens.server import serving
from flame.ranker import Ranker
from flame.records import RankRequest

Answer = Callable[[Question], Scores]


@contextmanager
def by_ranker(model: Path, store: Path, engine: EngineConfig) -> Iterator[Answer]:
    """Answers of `flame.Ranker` over the prepared store; only user and candidates are sent."""
    config = Config(features=FeaturesConfig(path=str(store)), engine=engine)
    with Ranker.load(model, config) as ranker:

        def answer(question: Question) -> Scores:
            return ranker.rank(RankRequest(user=question.user, candidates=question.candidates)).scores.copy()

        yield answer


@contextmanager
def by_http(model: Path, store: Path, engine: EngineConfig) -> Iterator[Answer]:
    """Answers of `flame serve` to `POST /v1/rank`."""
    options = ("--backend", engine.backend, "--set", f"engine.precision={engine.precision}")
    with serving(model, store, options) as client:

        def answer(question: Question) -> Scores:
            scores = client.rank(question.user, question.candidates.tolist())["scores"]
            return np.array([scores[task.name] for task in TASKS]).T

        yield answer
