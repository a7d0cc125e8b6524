"""The search for the highest rate, against a simulated queue whose answer is known."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from flame.bench.load.arrivals import poisson
from flame.bench.load.client import Reply
from flame.bench.load.record import Outcome, Window
from flame.bench.load.search import Search, holds


def queue(rate: float, seconds: float, service_s: float = 0.01, fails_over: float = np.inf) -> list[Outcome]:
    """One server with a first-come queue and a fixed service time."""
    free, outcomes = 0.0, []
    for due in poisson(rate, seconds, seed=int(rate)):
        free = max(free, due) + service_s
        reply = Reply("ok" if rate <= fails_over else "queue_full")
        outcomes.append(Outcome(due, due, free, 1, reply))
    return outcomes


def search(p99_ms: float, first: float, **options: float) -> Search:
    async def probe(rate: float, seconds: float) -> tuple[list[Outcome], Window]:
        return queue(rate, seconds, **options), Window(0, seconds)

    found = Search(probe, p99_ms, step_s=40, confirm_s=120)
    found.best = asyncio.run(found.run(first))  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("first", [3.0, 60.0, 5000.0])
def test_the_highest_rate_is_found_from_any_start(first: float) -> None:
    """M/D/1, service 10 ms: P(wait > 4 services) = 1 % at a load of 0.57 (Cramer-Lundberg), so 57 per second."""
    found = search(50.0, first)
    best = found.best  # type: ignore[attr-defined]
    assert best is not None
    assert best.phase == "confirm"
    assert best.held
    assert 50 <= best.rate <= 60
    assert len(found.steps) < 25


def test_an_impossible_bound_ends_without_a_rate() -> None:
    found = search(5.0, 100.0)
    assert found.best is None  # type: ignore[attr-defined]
    assert not any(step.held for step in found.steps)
    assert len(found.steps) < 12


def test_failures_are_never_held_however_quick() -> None:
    best = search(1000.0, 100.0, service_s=0.0001, fails_over=40.0).best  # type: ignore[attr-defined]
    assert best is not None
    assert best.rate <= 40


def test_a_queue_that_grows_is_not_held_by_a_generous_bound() -> None:
    outcomes = queue(rate=200, seconds=10)
    assert not holds(outcomes, Window(0, 10), p99_ms=1e9)


def test_a_run_without_requests_held_nothing() -> None:
    assert not holds([], Window(0, 1), 100)


@pytest.mark.parametrize(("late", "held"), [(10, True), (11, False)])
def test_one_percent_may_be_late(late: int, held: bool) -> None:
    """Of 1001 requests the 99th percentile is the 11th from the top."""
    outcomes = [
        Outcome(i / 1001, i / 1001, i / 1001 + (0.9 if i < late else 0.001), 1, Reply("ok")) for i in range(1001)
    ]
    assert holds(outcomes, Window(0, 1.0), 100) == held
