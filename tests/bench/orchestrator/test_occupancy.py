"""Busy time and padding of spans that can be worked out by hand, and of any others by counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.bench.orchestrator.occupancy import occupancy, padding_waste, total, union
from flame.orchestrator.timeline import LaunchSpan


def span(
    begin: float, end: float, *, candidates: int = 8, slots: int = 8, requests: int = 1, device: str = "cpu"
) -> LaunchSpan:
    """A launch that fills for 0.1 s before its engine call and reads for 0.1 s after it."""
    times = {"filled": begin - 0.1, "launched": begin, "scored": end, "ended": end + 0.1}
    return LaunchSpan(
        executor=0,
        device=device,
        profile="1x30+8",
        kind="rank" if slots else "encode",
        requests=requests,
        candidates=candidates,
        slots=slots,
        error="",
        members=(),
        **times,
    )


@pytest.mark.parametrize(
    ("intervals", "busy", "running"),
    [
        ([], 0.0, 0.0),
        ([(1, 3)], 2.0, 2.0),
        ([(1, 3), (2, 4)], 3.0, 4.0),
        ([(1, 9), (2, 3), (4, 5)], 8.0, 10.0),
        ([(4, 5), (1, 2), (2, 3)], 3.0, 3.0),
        ([(-5, 1), (9, 50)], 2.0, 2.0),
        ([(-5, -1), (10, 50)], 0.0, 0.0),
        ([(-5, 50), (-5, 50)], 10.0, 20.0),
    ],
)
def test_time_of_intervals_between_0_and_10(intervals: list[tuple[float, float]], busy: float, running: float) -> None:
    times = np.array(intervals, np.float64).reshape(-1, 2)
    assert union(times, 0.0, 10.0) == pytest.approx(busy)
    assert total(times, 0.0, 10.0) == pytest.approx(running)


@given(st.lists(st.tuples(st.integers(-5, 25), st.integers(0, 20)), max_size=12))
def test_a_union_is_what_counting_whole_seconds_gives(drawn: list[tuple[int, int]]) -> None:
    times = np.array([(begin, begin + length) for begin, length in drawn], np.float64).reshape(-1, 2)
    seconds = {second for begin, length in drawn for second in range(begin, begin + length)}
    assert union(times, 0.0, 20.0) == len(seconds & set(range(20)))


def test_waste_is_the_share_of_slots_without_a_candidate() -> None:
    assert padding_waste([span(0, 1, candidates=6, slots=8), span(1, 2, candidates=32, slots=32)]) == pytest.approx(
        2 / 40
    )
    assert padding_waste([span(0, 1, candidates=0, slots=0), span(1, 2, candidates=4, slots=8)]) == pytest.approx(0.5)
    assert padding_waste([span(0, 1, candidates=0, slots=0)]) is None


def test_launches_count_where_they_end_and_their_time_where_it_lies() -> None:
    spans = [span(-3, 1, candidates=4, requests=2), span(2, 4), span(3, 5), span(8, 12, candidates=1)]
    seen = occupancy(spans, 0.0, 10.0)
    assert seen.busy_share == pytest.approx((1 + 3 + 2) / 10)
    assert seen.running == pytest.approx((1 + 2 + 2 + 2) / 10)
    assert seen.padding_waste == pytest.approx(4 / 24)
    assert seen.users == pytest.approx(4 / 3)
    assert seen.launches_per_s == pytest.approx(0.3)


def test_devices_are_busy_each_by_itself() -> None:
    seen = occupancy([span(0, 4, device="cuda:0"), span(0, 2, device="cuda:1")], 0.0, 10.0)
    assert seen.busy_share == pytest.approx(0.3)
    assert seen.running == pytest.approx(0.6)


def test_a_stretch_without_launches_has_no_shares() -> None:
    assert occupancy([], 0.0, 10.0) == (None, None, None, None, 0.0)
