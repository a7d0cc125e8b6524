"""AUC and NDCG of one user's ranked candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.bool_]


def auc(scores: NDArray[np.floating], labels: Labels) -> float:
    """The chance that a positive stands above a negative, ties counted half: `[candidates]`, `[candidates]`.

    The Mann-Whitney statistic over midranks. NaN where positives or negatives are missing.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    ranks = midranks[inverse][labels].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def ndcg(scores: NDArray[np.floating], labels: Labels, top: int = 10) -> float:
    """Normalised discounted cumulative gain of the `top` highest scores with gain 1 for a positive.

    Tied scores share the mean gain of their group, so that the order of the input never helps. NaN without positives.
    """
    positives = int(labels.sum())
    if not positives:
        return float("nan")
    discounts = 1 / np.log2(np.arange(min(top, len(scores))) + 2)
    order = np.argsort(-scores, kind="stable")
    _, group, counts = np.unique(-scores[order], return_inverse=True, return_counts=True)
    mean_gains = np.bincount(group, weights=labels[order]) / counts
    gains = mean_gains[group][: len(discounts)]
    return float(gains @ discounts / discounts[:positives].sum())
