"""AUC and NDCG against definitions written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.movielens.metrics import auc, ndcg

LISTS = st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 3.0]), st.booleans()), min_size=1, max_size=12)


def columns(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = zip(*pairs, strict=True)
    return np.array(scores, np.float32), np.array(labels, np.bool_)


@given(LISTS)
def test_auc_is_the_share_of_ordered_pairs(pairs: list[tuple[float, bool]]) -> None:
    won = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for (high, good), (low, bad) in itertools.product(pairs, pairs)
        if good and not bad
    ]
    found = auc(*columns(pairs))
    assert math.isnan(found) if not won else found == pytest.approx(sum(won) / len(won))


@given(LISTS, st.integers(1, 12), st.randoms())
def test_ndcg_is_the_mean_over_all_orders_of_ties(pairs: list[tuple[float, bool]], top: int, random) -> None:
    pairs = pairs[:6]
    labels = [label for _, label in pairs]
    if not any(labels):
        assert math.isnan(ndcg(*columns(pairs), top))
        return
    best = sum(1 / math.log2(rank + 2) for rank in range(min(top, sum(labels))))
    orders = [
        order
        for order in itertools.permutations(pairs)
        if all(first[0] >= second[0] for first, second in itertools.pairwise(order))
    ]
    gains = [sum(label / math.log2(rank + 2) for rank, (_, label) in enumerate(order[:top])) for order in orders]
    assert ndcg(*columns(pairs), top) == pytest.approx(sum(gains) / len(gains) / best)
    random.shuffle(pairs)
    assert ndcg(*columns(pairs), top) == pytest.approx(sum(gains) / len(gains) / best)


def test_a_perfect_and_a_reversed_ranking() -> None:
    scores, labels = np.array([4.0, 3, 2, 1]), np.array([True, True, False, False])
    assert (auc(scores, labels), ndcg(scores, labels)) == (1.0, 1.0)
    assert auc(-scores, labels) == 0.0
    assert ndcg(-scores, labels, top=2) == 0.0
