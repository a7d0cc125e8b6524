"""The questions of the evaluation and how answers are measured.

A question is one evaluated user with every movie that is not in their history as a candidate: no candidate is sampled,
so the numbers do not depend on a draw. A good answer puts the movies that the user rated later on top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.movielens.metrics import auc, ndcg
from flame.examples.movielens import split
from flame.examples.movielens.columns import Statistics
from flame.examples.movielens.dataset import Events, Ints
from flame.examples.movielens.schema import LIKED, MOVIES
from flame.records import History

Scores = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Question:
    """One evaluated user; `labels` `[candidates, tasks]` say what was watched and what was liked later."""

    user: int
    history: History
    candidates: Ints
    labels: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Measures:
    """Means over users. AUC of each task by its own score; NDCG@10 of what was liked by the `like` score."""

    auc_watch: float
    auc_like: float
    ndcg_like: float
    users: int

    def __str__(self) -> str:
        return f"AUC watch {self.auc_watch:.4f}, AUC like {self.auc_like:.4f}, NDCG@10 like {self.ndcg_like:.4f}"


def questions(events: Events, until: int) -> list[Question]:
    """All evaluated users who liked something later, in ascending order of id."""
    found = [_question(case) for case in split.cases(events, until)]
    return [question for question in found if question.labels[:, 1].any()]


def measure(asked: Sequence[Question], answer: Callable[[Question], Scores]) -> Measures:
    """The quality of `answer`, which returns scores `[candidates, tasks]` of a question."""
    rows = []
    for question in asked:
        scores = answer(question)
        watch, like = question.labels.T
        rows.append((auc(scores[:, 0], watch), auc(scores[:, 1], like), ndcg(scores[:, 1], like)))
    auc_watch, auc_like, ndcg_like = np.array(rows).mean(0).tolist()
    return Measures(auc_watch, auc_like, ndcg_like, len(rows))


def popularity(statistics: Statistics) -> Callable[[Question], Scores]:
    """The baseline: how often a movie was rated, and how often liked, in the training period."""
    counts = np.stack([statistics.events, statistics.likes], 1)
    return lambda question: counts[question.candidates]


def recent_popularity(statistics: Statistics) -> Callable[[Question], Scores]:
    """The same over the last 30 days of the training period; one count for both tasks."""
    counts = np.stack([statistics.recent, statistics.recent], 1)
    return lambda question: counts[question.candidates]


def _question(case: split.Case) -> Question:
    candidates = np.setdiff1d(np.arange(1, MOVIES + 1), case.history.items)
    liked = case.later.items[case.later.ratings >= LIKED]
    labels = np.stack([np.isin(candidates, case.later.items), np.isin(candidates, liked)], 1)
    return Question(case.user, case.history, candidates, labels)
