"""The numbers of a run against plain numpy over the same requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.bench.load.client import Reply
from flame.bench.load.record import Outcome, Window, summarise

OK = Reply("ok")


def outcome(
    due: float, took: float, kind: str = "ok", candidates: int = 5, lag: float = 0.0, **stages: float
) -> Outcome:
    return Outcome(due, due + lag, due + took, candidates, Reply(kind, stages))


def test_percentiles_agree_with_numpy() -> None:
    took = np.random.default_rng(0).lognormal(-4, 1, 5000)
    row = summarise([outcome(index / 5000, value) for index, value in enumerate(took)], Window(0, 1), None)
    for name, share in (("ms_p50", 50), ("ms_p99", 99), ("ms_p999", 99.9)):
        assert row[name] == pytest.approx(1e3 * np.percentile(took, share), rel=1e-9)
    assert row["ms_mean"] == pytest.approx(1e3 * took.mean())
    assert row["ms_max"] == pytest.approx(1e3 * took.max())


def test_goodput_counts_answers_within_the_deadline_of_their_intended_sending() -> None:
    outcomes = [
        outcome(0.1, 0.010),
        outcome(0.2, 0.050),  # exactly at the deadline
        outcome(0.3, 0.051, lag=0.02),  # late, though quick once it was sent
        outcome(0.4, 0.001, "queue_full"),
        outcome(0.5, 10.0, "timeout"),
    ]
    row = summarise(outcomes, Window(0, 2), 50.0000001)
    assert row["goodput"] == pytest.approx(2 / 2)
    assert row["goodput_pairs_per_s"] == pytest.approx(2 * 5 / 2)
    assert row["goodput_share"] == pytest.approx(2 / 5)
    assert row["failed"] == 2
    assert row["errors"] == {"queue_full": 1, "timeout": 1}


def test_only_the_window_counts() -> None:
    outcomes = [
        outcome(0.5, 0.1, "boom"),  # due while warming up
        outcome(0.9, 0.2),  # warm-up, answered inside: part of the rate, not of the latencies
        outcome(1.5, 0.1),
        outcome(1.95, 0.5),  # due inside, answered after the end: a latency, not part of the rate
        outcome(2.0, 0.1),  # due at the end: outside
    ]
    row = summarise(outcomes, Window(1, 2), None)
    assert row["requests"] == 2
    assert row["errors"] == {}
    assert row["achieved_rate"] == pytest.approx(2.0)
    assert row["pairs_per_s"] == pytest.approx(10.0)
    assert row["ms_max"] == pytest.approx(500)


def test_an_empty_window_has_no_latencies_and_does_not_fail() -> None:
    row = summarise([], Window(0, 1), 10)
    assert row["ms_p99"] is None
    assert row["goodput_share"] is None
    assert row["achieved_rate"] == 0


def test_send_lag_and_stages_are_reported() -> None:
    outcomes = [outcome(0.1, 0.1, lag=0.003, compute=100.0, queue=1.0), outcome(0.2, 0.1, lag=0.003, compute=300.0)]
    row = summarise(outcomes, Window(0, 1), None)
    assert row["send_lag_ms_p99"] == pytest.approx(3.0)
    assert row["stages_us"]["compute"]["p50"] == pytest.approx(200.0)
    assert row["stages_us"]["queue"] == {"p50": 1.0, "p99": 1.0}


@given(
    st.lists(
        st.tuples(
            st.floats(0, 2), st.floats(0, 5), st.sampled_from(["ok", "timeout", "queue_full"]), st.integers(1, 99)
        ),
        max_size=60,
    )
)
def test_what_is_counted_adds_up(drawn: list[tuple[float, float, str, int]]) -> None:
    outcomes = [outcome(due, took, kind, candidates) for due, took, kind, candidates in drawn]
    row = summarise(outcomes, Window(0.5, 1.5), 1000.0)
    inside = [one for one in outcomes if 0.5 <= one.due < 1.5]
    assert row["requests"] == len(inside)
    assert row["failed"] == sum(row["errors"].values())
    assert row["failed"] == sum(one.reply.outcome != "ok" for one in inside)
    assert 0 <= row["goodput"] <= row["requests"]
