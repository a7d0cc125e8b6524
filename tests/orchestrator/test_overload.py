"""Three times the traffic that can be served, and a little less than can be: who is let in, and who is in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from tests.orchestrator.simulation import Arrival, Outcome, Simulation, World, capacity, poisson

WORLDS = {
    "one executor": World(executors=1),
    "three executors": World(),
    "noisy and slower than measured": World(slower=1.6, noise=0.35),
    "executors that slow each other down": World(contention=0.3),
    "features take two milliseconds": World(gather_s=0.002),
    "histories come again": World(keep=16),
    "each request alone, by the paper's rule": World(users=(1,), policy="largest-first"),
}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


def count(outcomes: Iterable[Outcome], *kinds: str) -> int:
    return sum(outcome.kind in kinds for outcome in outcomes)


def in_time(outcomes: Iterable[Outcome]) -> float:
    """The share of the accepted requests that met their deadline."""
    accepted = [outcome for outcome in outcomes if outcome.kind != "refused"]
    return count(accepted, "ok") / len(accepted)


def refused(outcomes: list[Outcome]) -> float:
    return count(outcomes, "refused") / len(outcomes)


def goodput(outcomes: Iterable[Outcome], arrivals: list[Arrival]) -> float:
    """Pairs scored in time, in each second in which requests came; what is done after the last one does not count."""
    first, last = arrivals[0].at, arrivals[-1].at
    return sum(outcome.scored for outcome in outcomes if outcome.at <= last) / (last - first)


def nothing_is_kept(simulation: Simulation) -> bool:
    """Whether queue and admission keep nothing but what they have learned, when all deadlines are over."""
    assert simulation.schedule.take(simulation.now + 1.0) is None
    queue, forecast = simulation.schedule._pending, simulation.admission._forecast
    return (
        simulation.admission.in_flight == simulation.schedule.alive == len(queue) == 0
        and not queue._deadlines
        and not any(lane.rounds._held or lane.rounds._rounds or lane.work_ms for lane in forecast._lanes.values())
        and len(forecast._excess) < 50
    )


def returning(world: World) -> Callable[[int], int]:
    """Users who ask five times within moments where histories are kept, a new one each time elsewhere."""
    return lambda number: number // 20 * 4 + number % 4 if world.keep else number


@pytest.mark.parametrize("deadline_ms", [10.0, 40.0])
def test_overload_keeps_goodput_and_accepted_requests_are_in_time(world: World, deadline_ms: float) -> None:
    requests, pairs = capacity(world)
    arrivals = poisson(3 * requests, 12_000, deadline_ms, user=returning(world))
    simulation = Simulation(world)
    outcomes = simulation.run(arrivals)
    assert len(outcomes) == len(arrivals)
    assert in_time(outcomes) >= 0.99
    assert goodput(outcomes, arrivals) >= 0.9 * pairs
    assert nothing_is_kept(simulation)


def test_what_can_be_served_is_not_refused(world: World) -> None:
    arrivals = poisson(0.8 * capacity(world)[0], 8000, 20.0, user=returning(world))
    outcomes = Simulation(world).run(arrivals)
    assert refused(outcomes) < 0.01
    assert in_time(outcomes) >= 0.99


@pytest.mark.parametrize("name", ["one executor", "histories come again"])
def test_traffic_that_comes_and_goes(name: str) -> None:
    """Bad times are not remembered for long, nor is a quiet time taken for the rule."""
    world = WORLDS[name]
    requests, pairs = capacity(world)
    simulation, start, outcomes = Simulation(world), 0.0, []
    for number, load in enumerate((0.5, 3.0, 0.7, 3.0, 0.7)):
        arrivals = poisson(load * requests, int(4000 * load), 20.0, seed=number)
        moved = [replace(one, at=one.at + start, deadline=one.deadline + start) for one in arrivals]
        before = len(outcomes)
        outcomes = simulation.run(moved)
        during = outcomes[before:]
        assert in_time(during) >= 0.99
        if load < 1:
            assert refused(during) < 0.01
        else:
            assert goodput(during, moved) >= 0.9 * pairs
        start = simulation.now


def test_interactive_requests_do_not_feel_batch_ones() -> None:
    requests, pairs = capacity(World())
    interactive = poisson(0.7 * requests, 7000, 20.0, seed=1)
    batch = poisson(2.3 * requests, 23_000, 150.0, seed=2, priority="batch")
    outcomes = Simulation(World()).run(interactive + batch)
    first = [outcome for outcome in outcomes if outcome.arrival.priority == "interactive"]
    rest = [outcome for outcome in outcomes if outcome.arrival.priority == "batch"]
    assert refused(first) < 0.01
    assert in_time(first) >= 0.99
    # Fewer are planned together where some are not to wait, so that launches are a little emptier.
    assert goodput(outcomes, interactive) >= 0.88 * pairs
    assert refused(rest) > 0.5
    settled = [outcome for outcome in rest if outcome.arrival.at > 0.25 * interactive[-1].at]
    assert in_time(settled) >= 0.97


def test_one_user_with_too_many_requests_is_refused_and_nobody_else() -> None:
    requests, pairs = capacity(World())
    others = poisson(0.5 * requests, 5000, 20.0, seed=1, user=lambda number: number + 1)
    greedy = poisson(2.5 * requests, 25_000, 20.0, seed=2, user=lambda number: 0)
    outcomes = Simulation(World()).run(others + greedy)
    modest = [outcome for outcome in outcomes if outcome.arrival.user]
    assert refused(modest) < 0.01
    assert in_time(modest) >= 0.99
    assert in_time(outcomes) >= 0.99
    assert goodput(outcomes, others) >= 0.9 * pairs


def test_truncating_answers_more_requests_in_time() -> None:
    world = World(overload="truncate")
    arrivals = poisson(1.3 * capacity(world)[0], 12_000, 20.0)
    simulation = Simulation(world)
    outcomes = simulation.run(arrivals)
    refusing = Simulation(World()).run(arrivals)
    truncated = sum(0 < outcome.scored < outcome.arrival.candidates for outcome in outcomes)
    assert truncated > 1000
    assert in_time(outcomes) >= 0.99
    assert refused(outcomes) < refused(refusing)
