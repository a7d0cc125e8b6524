"""Real questions to a server: every movie that a person has not seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flame.examples.movielens import split
from flame.examples.movielens.schema import LIKED, MOVIES
from flame.examples.movielens.server import RankClient

_LIKES = 10


@dataclass(frozen=True, slots=True)
class Ranking:
    """One person, the candidates, the server's answer, and how long the client waited for it."""

    case: split.Case
    candidates: list[int]
    answer: dict[str, Any]
    waited_ms: float

    def best(self, task: str, count: int) -> list[int]:
        """Positions of the `count` candidates with the highest score, best first."""
        order = np.argsort(-np.array(self.answer["scores"][task]), kind="stable")
        return [int(position) for position in order[:count]]


def rank(client: RankClient, case: split.Case) -> Ranking:
    """Every movie that is not in the history of `case`, ranked by the server; it looks the history up by itself."""
    candidates: list[int] = np.setdiff1d(np.arange(1, MOVIES + 1), case.history.items).tolist()
    began = time.monotonic()
    answer = client.rank(case.user, candidates)
    return Ranking(case, candidates, answer, (time.monotonic() - began) * 1e3)


def choose(cases: Sequence[split.Case], count: int) -> list[split.Case]:
    """The first `count` people who liked enough before and after the cut to say something about the answer."""
    telling = [
        case
        for case in cases
        if (case.history.actions >= LIKED).sum() >= _LIKES and (case.later.ratings >= LIKED).sum() >= _LIKES
    ]
    return telling[:count]
