"""What a profile is measured to cost: medians of passes, and no more launches than there is time for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from flame.engine import costs
from flame.engine.backends.base import LaunchBuffers
from flame.engine.costs import measure_cost
from flame.engine.presets import preset
from flame.engine.spec import Profile

PROFILE = Profile(2, 20, 7)


class Clock:
    """Seconds that only launches take."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Timed:
    """What measuring needs of an engine, whose launches take what `seconds` says, one after the other of each kind."""

    spec = preset("tiny-climber")

    def __init__(self, clock: Clock, seconds: dict[str, Iterator[float]]) -> None:
        self.clock, self.seconds = clock, seconds
        self.count = dict.fromkeys(seconds, 0)

    def buffers(self, profile: Profile) -> LaunchBuffers:
        layout = self.spec.layout(profile)
        words, scores = np.zeros(layout.words, np.int32), np.zeros((2, 7, 1), np.float32)
        return LaunchBuffers(profile, layout, words, scores, torch.from_numpy(words), torch.from_numpy(scores))

    def state(self, history: int) -> None:
        return None

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        self._launch("rank")

    def encode(self, buffers: LaunchBuffers, states: Sequence[object]) -> None:
        self._launch("encode")

    def score(self, buffers: LaunchBuffers, states: Sequence[object]) -> None:
        self._launch("score")

    def _launch(self, kind: str) -> None:
        self.count[kind] += 1
        self.clock.now += next(self.seconds[kind])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(costs, "time", clock)
    return clock


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def disturbed(seconds: float, first: int, last: int) -> Iterator[float]:
    """Five times as long from launch `first` to launch `last`."""
    for number in range(10_000):
        yield seconds * (5 if first <= number < last else 1)


def test_a_disturbance_of_one_pass_does_not_show(clock: Clock) -> None:
    seconds = {"rank": disturbed(1e-3, 0, 26), "encode": always(2e-4), "score": always(3e-4)}
    cost = measure_cost(Timed(clock, seconds), PROFILE)
    assert (cost.rank, cost.encode, cost.score) == pytest.approx((1.0, 0.2, 0.3))


def test_slow_launches_are_measured_once_and_no_more_than_three_times(clock: Clock) -> None:
    engine = Timed(clock, {"rank": always(2.0), "encode": always(1.0), "score": always(0.5)})
    cost = measure_cost(engine, PROFILE)
    assert (cost.rank, cost.encode, cost.score) == pytest.approx((2e3, 1e3, 5e2))
    assert engine.count == {"rank": 4, "encode": 4, "score": 4}
