"""What a ranker tells of its answers, one by one and added up."""

from __future__ import annotations

import time

import numpy as np
import pytest

from flame.errors import ExecutionError
from flame.records import RankRequest
from tests.faulty_engine import nth
from tests.ranker.world import ITEMS, requests


def test_a_response_says_what_served_it_and_what_was_amiss(bench) -> None:
    one = bench(candidates=(5,))
    good = one.ranker.rank(RankRequest(user=7, candidates=np.arange(1, 6)))
    assert (good.model, good.version, good.backend) == (one.spec.name, "1", "eager")
    assert not good.counts.degraded
    times = good.times
    stages = (times.admission, times.features, times.queue, times.compute, times.respond)
    assert min(stages) >= 0
    assert sum(stages) == pytest.approx(times.total)
    bad = one.ranker.rank(RankRequest(user=7, candidates=np.array([1, ITEMS + 1, 10**9])))
    assert bad.counts.unknown == 2


def test_statistics_and_metrics_add_up(bench) -> None:
    one = bench(candidates=(5,))
    asked = requests(one.spec.input, 20)
    responses = [one.ranker.rank(request) for request in asked]
    one.engine.fails = nth(1)
    with pytest.raises(ExecutionError):
        one.ranker.rank(asked[0])
    done = one.ranker.statistics()
    pairs = sum(len(request.candidates) for request in asked)
    assert (done.succeeded, done.failed, done.pairs) == (20, 1, pairs)
    assert done.launches == sum(response.launches for response in responses)
    assert done.degraded == sum(response.counts.degraded for response in responses)
    assert done.times.total == pytest.approx(sum(response.times.total for response in responses))
    assert 0 < time.time() - done.last_answer < 60
    value = one.metrics.registry.get_sample_value
    assert value("flame_pairs_total") == pairs
    assert value("flame_request_seconds_count") == 20
    assert value("flame_stage_seconds_count", {"stage": "compute"}) == 20
