"""Are the answers right? Some requests of the workload, sent to the server and scored by the oracle in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flame.bench.load.client import Client, LoadError, ModelFacts
from flame.bench.workloads import Workload
from flame.config import Config
from flame.records import RankRequest, Scores

TOLERANCE = 1e-4
"""Largest difference of a score that passes."""


@dataclass(frozen=True, slots=True)
class Check:
    """The model as the server has it (a folder or `preset:NAME`), how to load it, and how many requests to compare."""

    source: str
    config: Config
    requests: int = 8


async def compare(check: Check, client: Client, facts: ModelFacts, workload: Workload) -> dict[str, Any]:
    """Largest difference between served scores and the oracle's. Raises `LoadError` when it is over `TOLERANCE`."""
    requests = [workload.request(index) for index in range(min(check.requests, len(workload)))]
    served = [await client.scores(client.message(request, facts, None), facts) for request in requests]
    errors = [_difference(mine, theirs) for mine, theirs in zip(_oracle(check, requests), served, strict=True)]
    worst = max(errors)
    if not worst <= TOLERANCE:
        index = int(np.argmax(errors))
        raise LoadError(
            f"answers are wrong: request {index} of the workload differs from the oracle by {worst:.2e}, more than "
            f"{TOLERANCE:g}; is {check.source} the model that the server has, with the same features?"
        )
    return {"requests": len(requests), "max_error": worst, "tolerance": TOLERANCE}


def _oracle(check: Check, requests: list[RankRequest]) -> list[Scores]:
    from msgspec.structs import replace

    from flame.ranker import Ranker

    config = replace(check.config, engine=replace(check.config.engine, backend="eager", precision="fp32"))
    with Ranker.load(check.source, config) as ranker:
        return [ranker.rank(request).scores for request in requests]


def _difference(expected: Scores, found: Scores) -> float:
    """The largest difference; infinite for other shapes and for NaN."""
    if expected.shape != found.shape:
        return float("inf")
    difference = np.abs(expected.astype(np.float64) - found)
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))
