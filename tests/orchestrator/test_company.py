"""Who waits for company, and for how long: virtual time, no threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame.engine.spec import Profile, ProfileCost
from flame.metrics import Metrics
from flame.orchestrator.device import Device
from flame.orchestrator.job import Job
from flame.orchestrator.plan import plan
from flame.orchestrator.profiles import ProfileSet
from flame.orchestrator.reuse import Reuse
from flame.orchestrator.schedule import Schedule
from flame.orchestrator.states import StatePool
from flame.orchestrator.ticket import Ticket
from flame.records import Features
from tests.orchestrator.asking import nobody
from tests.orchestrator.conftest import HashEngine

Make = Callable[..., Features]
COMPANY_S = 0.002
LAUNCH_S = 0.010


@pytest.fixture
def company(spec) -> Callable[..., Schedule]:
    """A schedule for launches of `users`, which cost 10 ms whoever is in them, or that for each of them."""

    def make(users: int = 4, executors: int = 2, *, shared: bool = True, company_s: float = COMPANY_S) -> Schedule:
        costs = {
            Profile(count, 30, 64): ProfileCost(*[1e3 * LAUNCH_S * (1 if shared else count)] * 3)
            for count in range(1, users + 1)
        }
        profiles = ProfileSet(spec, costs, costs)
        metrics = Metrics()
        pool = StatePool(HashEngine(spec, list(costs), costs), profiles, executors, 0, metrics)
        device = Device("virtual", profiles, Reuse(pool, profiles, 0, metrics), executors)
        return Schedule([device], plan, company_s)

    return make


def come(schedule: Schedule, features: Features, at: float, deadline: float | None = None) -> Ticket:
    ticket = Ticket(features, nobody, tasks=2, submitted=at, deadline=deadline, cancelled=None)
    ticket.cost_ms = 1e3 * LAUNCH_S
    schedule.add(ticket)
    return ticket


def busy(schedule: Schedule, make: Make, *, every: float) -> Job:
    """Requests have come `every` so many seconds up to 0.0, one launch runs, and nothing waits."""
    same = make(1000, 5)
    for number in range(-400, 0):
        come(schedule, same, number * every)
        job = schedule.take(number * every)
        if job is not None and number < -1:
            schedule.finish(job, began=number * every, ended=number * every)
    assert job is not None
    return job


def test_a_device_that_runs_nothing_waits_for_nobody(company, features: Make) -> None:
    schedule = company()
    schedule.finish(busy(schedule, features, every=0.0005), began=0.0, ended=0.0)
    come(schedule, features(1, 5), 0.0)
    assert schedule.take(0.0) is not None


def test_a_request_waits_where_company_is_near_and_a_launch_runs(company, features: Make) -> None:
    schedule = company()
    busy(schedule, features, every=0.0005)
    come(schedule, features(1, 5), 0.0)
    assert schedule.take(0.0) is None
    assert not schedule.has_work(), "nobody looks again and again"
    assert schedule.patience(0.0005) == pytest.approx(COMPANY_S - 0.0005)
    come(schedule, features(2, 5), 0.0005)
    assert schedule.has_work()
    assert schedule.take(0.0005) is None
    job = schedule.take(COMPANY_S)
    assert job is not None
    assert len(job.parts) == 2


def test_a_full_launch_waits_no_longer(company, features: Make) -> None:
    schedule = company()
    busy(schedule, features, every=0.0005)
    for number in range(3):
        come(schedule, features(number, 5), 0.0)
        assert schedule.take(0.0) is None
    come(schedule, features(3, 5), 0.0001)
    job = schedule.take(0.0001)
    assert job is not None
    assert len(job.parts) == 4


def test_when_the_other_launch_ends_nobody_waits_on(company, features: Make) -> None:
    schedule = company()
    job = busy(schedule, features, every=0.0005)
    come(schedule, features(1, 5), 0.0)
    assert schedule.take(0.0) is None
    schedule.finish(job, began=0.0, ended=0.0001)
    assert schedule.take(0.0001) is not None


@pytest.mark.parametrize(
    ("every", "options"),
    [(0.05, {}), (0.0005, {"shared": False}), (0.0005, {"company_s": 0.0})],
    ids=["nobody comes", "nothing is saved", "switched off"],
)
def test_nobody_waits_in_vain(company, features: Make, every: float, options: dict[str, float]) -> None:
    schedule = company(**options)
    busy(schedule, features, every=every)
    come(schedule, features(1, 5), 0.0)
    assert schedule.take(0.0) is not None


def test_nobody_waits_when_a_deadline_is_near(company, features: Make) -> None:
    schedule = company()
    busy(schedule, features, every=0.0005)
    come(schedule, features(1, 5), 0.0)
    assert schedule.take(0.0) is None
    come(schedule, features(2, 5), 0.0001, deadline=0.0001 + 2 * LAUNCH_S)
    assert schedule.take(0.0001) is not None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(gaps=st.lists(st.floats(0.0, 0.004), min_size=1, max_size=40), users=st.integers(1, 6))
def test_no_request_waits_longer_for_company_than_it_may(company, features: Make, gaps, users) -> None:
    """One executor always runs; the other takes what it is given as soon as it is woken, and is done at once."""
    schedule = company(users)
    busy(schedule, features, every=0.0005)
    now, waiting = 0.0, {}
    for number, gap in enumerate([*gaps, 1.0]):
        until = now + gap
        while (patience := schedule.patience(now)) is not None and now + patience < until:
            now += patience
            _serve(schedule, now, waiting)
        now = until
        if number < len(gaps):
            waiting[come(schedule, features(number, 5), now)] = now
        _serve(schedule, now, waiting)
    assert not waiting


def _serve(schedule: Schedule, now: float, waiting: dict[Ticket, float]) -> None:
    while job := schedule.take(now):
        for ticket in job.requests():
            assert now - waiting.pop(ticket) <= COMPANY_S + 1e-9
        schedule.finish(job, began=now, ended=now)


def test_a_new_head_of_the_queue_does_not_make_others_wait_on(company, features: Make) -> None:
    schedule = company()
    busy(schedule, features, every=0.0005)
    batch = Ticket(features(1, 5), nobody, tasks=2, submitted=0.0, deadline=None, cancelled=None, priority="batch")
    schedule.add(batch)
    assert schedule.take(0.0) is None
    come(schedule, features(2, 5), 0.0019)
    assert schedule.take(0.0019) is None
    job = schedule.take(COMPANY_S)
    assert job is not None
    assert batch in job.requests()
