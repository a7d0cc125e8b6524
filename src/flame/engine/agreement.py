"""How far two engines' scores are apart, and how far their rankings."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from flame.records import Scores

TOP = 10


class TaskAgreement(msgspec.Struct, frozen=True):
    """One task: errors of the scores, and rank agreement as the mean over requests of two candidates or more.

    `max_abs` is in score units; `max_relative` and `rms_relative` are in units of the oracle's standard deviation.
    `kendall` is the share of concordant minus discordant pairs among those the oracle tells apart; `top_overlap` the
    share of the oracle's ten best (or of all, if fewer) among the engine's.
    """

    task: str
    max_abs: float
    max_relative: float
    rms_relative: float
    kendall: float
    top_overlap: float


def compare_task(
    task: str, oracle: Sequence[NDArray[np.float32]], engine: Sequence[NDArray[np.float32]]
) -> TaskAgreement:
    """Agreement over requests; entry i of each is the scores `[candidates]` of request i. A NaN counts as infinite."""
    truth = np.concatenate(oracle).astype(np.float64)
    error = np.abs(np.concatenate(engine).astype(np.float64) - truth)
    error[np.isnan(error)] = np.inf
    scale = spread(truth)
    pairs = [(own, other) for own, other in zip(oracle, engine, strict=True) if len(own) > 1]
    return TaskAgreement(
        task=task,
        max_abs=float(error.max()),
        max_relative=float(error.max() / scale),
        rms_relative=float(np.sqrt(np.mean(error**2)) / scale),
        kendall=_mean([kendall(own, other) for own, other in pairs]),
        top_overlap=_mean([top_overlap(own, other) for own, other in pairs]),
    )


def spread(scores: NDArray[np.float64]) -> float:
    """The standard deviation of `scores`; where they hardly differ, their size, and 1 for zeros."""
    deviation, size = float(scores.std()), float(np.abs(scores).max(initial=0.0))
    return deviation if deviation > 1e-6 * size else size or 1.0


def kendall(truth: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Kendall's tau over the pairs that differ in `truth`; 1 where there are none."""
    concordant = 0.0
    total = 0
    for index in range(len(truth) - 1):
        own = np.sign(truth[index] - truth[index + 1 :])
        concordant += float(np.sum(own * np.sign(other[index] - other[index + 1 :])))
        total += int(np.count_nonzero(own))
    return concordant / total if total else 1.0


def top_overlap(truth: NDArray[np.float32], other: NDArray[np.float32], top: int = TOP) -> float:
    """The share of the `top` best by `truth` that are among the `top` best by `other`."""
    count = min(top, len(truth))
    best = set(np.argsort(-truth, kind="stable")[:count].tolist())
    return len(best & set(np.argsort(-other, kind="stable")[:count].tolist())) / count


def largest_difference(left: Scores, right: Scores, scale: NDArray[np.float64]) -> float:
    """The largest difference of scores `[candidates, tasks]` in units of `scale` `[tasks]`; infinite with a NaN."""
    difference = np.abs(left.astype(np.float64) - right.astype(np.float64)) / scale
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 1.0
