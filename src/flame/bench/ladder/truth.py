"""The oracle of a case, and how far others are from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flame.bench.ladder.cases import Case
from flame.bench.ladder.entrant import Entrant
from flame.bench.ladder.torch_entrants import true_rows
from flame.engine.models import RankModel
from flame.engine.models.head import activate

_ROOM = 16 * 2**30
"""Bytes that one slice of the oracle may take for its dense attention."""

_MOST = {"bf16": 5e-2, "fp16": 1e-2, "fp32": 1e-4}
"""Norm of a difference over the norm of the truth; more and it is another model."""


class Distance(NamedTuple):
    """From the oracle's scores; `objection` says what is too far, or is empty."""

    error: float
    error_max: float
    objection: str


def oracle_scores(case: Case, model: RankModel) -> Tensor:
    """Scores of the fp32 model `[pairs, tasks]`, a few users at a time, as its attention matrix is dense."""
    at_once = max(1, _ROOM // case.dense_bytes(4))
    with torch.inference_mode():
        logits = [
            model.rank(case.inputs.slice(user, min(user + at_once, case.profile.users)))
            for user in range(0, case.profile.users, at_once)
        ]
        return case.asked(activate(torch.cat(logits), case.spec.tasks))


def distance(found: Tensor, truth: Tensor, precision: str) -> Distance:
    """Of scores `[pairs, tasks]` or of rows `[pairs, width]`."""
    difference = (found.double() - truth.double()).abs().nan_to_num(nan=torch.inf)
    error = float(difference.norm() / truth.double().norm())
    most = _MOST[precision]
    objection = f"differs from the oracle by {error:.2g} of its norm; {precision} may by {most:g}"
    return Distance(error, float(difference.max()), objection if not error <= most else "")


class Truths:
    """What the oracle says of a case, computed when it is first needed."""

    def __init__(self, case: Case, model: RankModel) -> None:
        self._case, self._model = case, model
        self._known: dict[str, Tensor] = {}

    def of(self, entrant: Entrant) -> Tensor:
        """What `entrant` should have found."""
        what = entrant.part if entrant.part == "model" or not entrant.ours else "our stack"
        if what not in self._known:
            self._known[what] = self._compute(what)
        return self._known[what]

    def _compute(self, what: str) -> Tensor:
        if what == "model":
            return oracle_scores(self._case, self._model)
        return true_rows(self._case, temperatures=what == "our stack")
