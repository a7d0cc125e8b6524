"""Averages that forget, and the margin that remembers bad moments."""

from __future__ import annotations

import numpy as np
import pytest

from flame.orchestrator.learning import Mean, Rate, Ratio, WorstLately


def test_a_mean_follows_what_is_observed() -> None:
    mean = Mean()
    assert mean.value == 0.0
    for value in [5.0] * 400 + [1.0] * 400:
        mean.add(value)
    assert mean.value == pytest.approx(1.0, rel=1e-2)


def test_a_ratio_is_one_of_sums() -> None:
    ratio = Ratio()
    assert ratio.value == 1.0
    ratio.add(4.0, 8.0)
    assert ratio.value == pytest.approx(2.0)
    for _ in range(1000):
        ratio.add(1.0, 1.0)
        ratio.add(99.0, 9.0)
    assert ratio.value == pytest.approx(0.1, rel=0.05)


def test_a_rate_is_learned_and_fades() -> None:
    rate = Rate()
    assert rate.value(10.0) == 0.0
    for step in range(500):
        rate.add(3.0, 10.0 + step / 2)
    assert rate.value(10.0 + 499 / 2) == pytest.approx(6.0, rel=1e-3)
    assert rate.value(400.0) < 3.0
    assert rate.value(1e6) < 0.001


def test_a_part_has_a_rate_of_its_own() -> None:
    rate, alone = Rate(), Rate()
    assert rate.part(10.0) == 0.0
    for step in range(500):
        part = 3.0 * (step % 3 == 0)
        rate.add(3.0, 10.0 + step / 2, part)
        alone.add(part, 10.0 + step / 2)
    for now in (259.5, 400.0, 1e6):
        assert rate.part(now) == pytest.approx(alone.value(now)) == pytest.approx(rate.value(now) / 3, rel=0.05)


def test_two_that_come_together_are_no_rate() -> None:
    rate = Rate()
    for _ in range(2):
        rate.add(1.0, 5.0)
    assert 0.0 < rate.value(5.0) < 0.05


def test_the_worst_block_counts_until_it_is_forgotten() -> None:
    worst, random = WorstLately(1.25), np.random.default_rng(1)
    assert worst.value == 1.25
    for value in random.uniform(0.0, 1.0, 256 * 20):
        worst.add(float(value))
    assert 0.98 < worst.value <= 1.0
    for number in range(256):
        worst.add(9.0 if number < 4 else 0.5)
    assert worst.value == 9.0
    for _ in range(256 * 15):
        worst.add(0.5)
    assert worst.value == 9.0
    for _ in range(256):
        worst.add(0.5)
    assert worst.value == 0.5


def test_one_of_a_hundred_may_be_beyond() -> None:
    worst = WorstLately(1.0)
    for number in range(256 * 17):
        worst.add(50.0 if number % 256 < 2 else 1.5)
    assert worst.value == 1.5
