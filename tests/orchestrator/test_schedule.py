"""The queue by itself: no threads, every step by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame.engine.spec import ModelSpec, Profile, ProfileCost
from flame.errors import DeadlineExceeded, RequestCancelled, ShuttingDown
from flame.metrics import Metrics
from flame.orchestrator.batching import AHEAD_MS, LEAST, MOST
from flame.orchestrator.device import Device
from flame.orchestrator.job import Job
from flame.orchestrator.plan import plan
from flame.orchestrator.profiles import ProfileSet
from flame.orchestrator.queue import BATCH_SHARE
from flame.orchestrator.reuse import Reuse
from flame.orchestrator.schedule import Schedule
from flame.orchestrator.states import StatePool
from flame.orchestrator.ticket import Ticket
from flame.records import Features
from tests.orchestrator.asking import nobody
from tests.orchestrator.conftest import HashEngine, costs

Make = Callable[..., Features]


@pytest.fixture
def queue(start) -> Callable[..., Schedule]:
    def make(users: tuple[int, ...] = (1,), executors: int = 1, keep: int = 0) -> Schedule:
        orchestrator, engine, metrics = start(users)
        profiles = orchestrator.profiles
        pool = StatePool(engine, profiles, executors, keep, metrics)
        return Schedule([Device(engine.device, profiles, Reuse(pool, profiles, keep, metrics), executors)], plan)

    return make


def ticket(features: Features, deadline: float | None = None, **whose: Any) -> Ticket:
    return Ticket(features, nobody, tasks=2, submitted=time.monotonic(), deadline=deadline, cancelled=None, **whose)


def take(schedule: Schedule) -> Job:
    return take_at(schedule, time.monotonic())


def take_at(schedule: Schedule, now: float) -> Job:
    job = schedule.take(now)
    assert job is not None
    return job


def finish(schedule: Schedule, job: Job) -> None:
    schedule.finish(job, began=1.0, ended=1.004)


def test_waiting_requests_are_shared_out_among_idle_executors(queue, features: Make) -> None:
    schedule = queue((1, 2, 4), executors=2)
    for number in range(4):
        schedule.add(ticket(features(number, 5)))
    assert [len(take(schedule).parts) for _ in range(2)] == [2, 2]
    assert schedule.take(time.monotonic()) is None


def test_a_busy_pool_packs_all_that_waits(queue, features: Make) -> None:
    schedule = queue((1, 4), executors=2)
    schedule.add(ticket(features(0, 5)))
    take(schedule)
    for number in range(1, 7):
        schedule.add(ticket(features(number, 5)))
    assert len(take(schedule).parts) == 4


def test_time_of_a_launch_is_charged_by_candidates(queue, features: Make) -> None:
    schedule = queue((4,))
    large, small = ticket(features(1, 12)), ticket(features(2, 4))
    schedule.add(large)
    schedule.add(small)
    finish(schedule, take(schedule))
    assert [large.spent_ms, small.spent_ms] == pytest.approx([3.0, 1.0])
    assert set(schedule.pop_settled()) == {large, small}
    assert schedule.alive == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 16, 65, 200]), min_size=1, max_size=25),
    users=st.sampled_from([(1,), (1, 4)]),
    executors=st.integers(1, 3),
    keep=st.sampled_from([0, 4]),
    data=st.data(),
)
def test_no_request_is_overtaken_by_more_than_are_planned_together(
    queue, features: Make, sizes: list[int], users: tuple[int, ...], executors: int, keep: int, data: st.DataObject
) -> None:
    schedule = queue(users, executors, keep)
    tickets = [ticket(features(number, size)) for number, size in enumerate(sizes)]
    coming, running, begun = list(tickets), [], []
    while coming or schedule.alive:
        step = data.draw(
            st.sampled_from(["add"] * bool(coming) + ["take"] * (len(running) < executors) + ["finish"] * bool(running))
        )
        if step == "add":
            schedule.add(coming.pop(0))
        elif step == "finish":
            finish(schedule, running.pop(data.draw(st.integers(0, len(running) - 1))))
        elif job := schedule.take(time.monotonic()):
            running.append(job)
            begun += [one for one in tickets if one in job.requests() and one not in begun]
    assert [one.settled for one in tickets] == [True] * len(tickets)
    places = [begun.index(one) for one in tickets]
    assert all(abs(place - number) < MOST * max(users) for number, place in enumerate(places))


def test_late_requests_are_dropped_without_a_launch(queue, features: Make) -> None:
    schedule = queue()
    late = ticket(features(1, 5), deadline=time.monotonic() - 1)
    schedule.add(late)
    assert schedule.take(time.monotonic()) is None
    assert schedule.pop_settled() == [late]
    assert isinstance(late.error, DeadlineExceeded)


def test_late_requests_are_dropped_though_others_are_before_them(queue, features: Make) -> None:
    schedule = queue()
    patient = [ticket(features(number, 5)) for number in range(5)]
    late = ticket(features(9, 5), deadline=50.0, priority="batch")
    for one in (*patient, late):
        schedule.add(one)
    assert schedule.take(50.0) is not None
    assert schedule.pop_settled() == [late]
    assert schedule.alive == 5


def test_a_request_that_would_be_late_at_the_end_of_its_launch_is_not_run(queue, features: Make) -> None:
    """A launch of 16 candidates takes 0.366 ms."""
    schedule = queue()
    doomed, fine = ticket(features(1, 5), deadline=10.0003), ticket(features(2, 5), deadline=10.0005)
    schedule.add(doomed)
    schedule.add(fine)
    assert take_at(schedule, 10.0).requests() == {fine}
    assert schedule.pop_settled() == [doomed]
    assert isinstance(doomed.error, DeadlineExceeded)
    assert "0.4 ms" in str(doomed.error)


def test_launches_that_take_less_than_was_measured_are_known_to(queue, features: Make) -> None:
    schedule = queue()
    for number in range(50):
        schedule.add(ticket(features(number, 5)))
        schedule.finish(take_at(schedule, 10.0), began=10.0, ended=10.00018)
    schedule.add(ticket(features(99, 5), deadline=10.0003))
    assert take_at(schedule, 10.0).parts


def test_launches_that_take_longer_are_no_reason_to_drop_anybody(queue, features: Make) -> None:
    schedule = queue()
    for number in range(50):
        schedule.add(ticket(features(number, 5)))
        schedule.finish(take_at(schedule, 10.0), began=10.0, ended=20.0)
    schedule.add(ticket(features(99, 5), deadline=10.0005))
    assert take_at(schedule, 10.0).parts


@pytest.mark.parametrize("planned", [False, True])
def test_who_withdraws_is_answered_at_once(queue, features: Make, planned: bool) -> None:
    schedule = queue(executors=2)
    whole, sliced = ticket(features(1, 5)), ticket(features(2, 200))
    schedule.add(whole)
    schedule.add(sliced)
    jobs = [take(schedule)]
    if planned:
        jobs.append(take(schedule))
        finish(schedule, jobs.pop())
    schedule.withdraw(sliced, RequestCancelled("gone"))
    assert schedule.pop_settled() == [sliced]
    assert schedule.take(time.monotonic()) is None
    schedule.withdraw(sliced, RequestCancelled("gone"))
    schedule.withdraw(whole, RequestCancelled("gone"))
    assert schedule.pop_settled() == [], "a launch still reads its features"
    finish(schedule, jobs[0])
    assert schedule.pop_settled() == [whole]
    assert isinstance(whole.error, RequestCancelled)
    assert schedule.alive == schedule.waiting == len(schedule._pending) == 0


def test_a_cut_spares_requests_whose_last_launch_runs(queue, features: Make) -> None:
    schedule = queue(executors=2)
    whole, sliced, waiting = (ticket(features(number, size)) for number, size in enumerate([5, 200, 5]))
    for one in (whole, sliced, waiting):
        schedule.add(one)
    jobs = [take(schedule), take(schedule)]
    assert schedule.cut(ShuttingDown("over")) == 2
    assert schedule.pop_settled() == [waiting]
    for job in jobs:
        finish(schedule, job)
    assert schedule.take(time.monotonic()) is None
    assert (whole.error, type(sliced.error)) == (None, ShuttingDown)
    assert schedule.alive == schedule.waiting == 0


@pytest.mark.parametrize(
    ("launch_ms", "executors", "launches"),
    [
        (AHEAD_MS / 99, 2, MOST),
        (AHEAD_MS / 5.1, 2, 5),
        (AHEAD_MS / 5.9, 2, 5),
        (AHEAD_MS / 3.1, 4, 3),
        (AHEAD_MS, 2, LEAST),
        (AHEAD_MS / 99, 1, LEAST),
    ],
)
def test_as_many_are_planned_together_as_fill_some_time(
    spec, features: Make, launch_ms: float, executors: int, launches: int
) -> None:
    costs = {Profile(4, 30, 16): ProfileCost(launch_ms, launch_ms, launch_ms)}
    profiles, metrics = ProfileSet(spec, costs, costs), Metrics()
    pool = StatePool(HashEngine(spec, list(costs), costs), profiles, executors, 0, metrics)
    schedule = Schedule([Device("virtual", profiles, Reuse(pool, profiles, 0, metrics), executors)], plan)
    same = features(1, 5)
    for _ in range(4 * executors * (LEAST + MOST)):
        schedule.add(ticket(same))
    planned = []
    while (job := schedule.take(1.0)) and len(planned) <= LEAST:
        planned.append(len(job.parts) + 4 * schedule.waiting)
        finish(schedule, job)
    assert planned[0] == 4 * LEAST, "before anything is known of what they cost"
    assert planned[LEAST] == 4 * launches


def batch_of(count: int, features: Make, **whose: Any) -> list[Ticket]:
    return [ticket(features(number, 5), priority="batch", **whose) for number in range(count)]


def test_interactive_requests_overtake_batch_ones_that_are_planned(queue, features: Make) -> None:
    schedule = queue((1, 4))
    batch = batch_of(20, features)
    for one in batch:
        schedule.add(one)
    assert take(schedule).requests() == set(batch[:4])
    assert schedule.waiting == 1
    schedule.add(interactive := ticket(features(99, 5)))
    assert interactive in take(schedule).requests()
    served = [one for job in iter(lambda: schedule.take(1.0), None) for one in job.requests()]
    assert set(served) <= set(batch)
    assert schedule.waiting == schedule.pending == 0


def test_batch_requests_that_are_planned_keep_their_share(queue, features: Make) -> None:
    """Launches of one request, which cost the same."""
    schedule = queue((1,))
    batch = batch_of(7, features)
    for one in batch:
        schedule.add(one)
    assert take(schedule).requests() == {batch[0]}
    order = []
    for number in range(100):
        schedule.add(ticket(features(number, 5)))
        order.append(next(iter(take(schedule).requests())))
    places = [place for place, one in enumerate(order) if one.priority == "batch"]
    assert len(places) == 4
    for before, place in itertools.pairwise([-1, *places]):
        assert 1 / BATCH_SHARE <= place - before - 1 <= 1 / BATCH_SHARE + 1
    assert [order[place] for place in places] == batch[1:5]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from([1, 65, 200]), st.integers(0, 5), st.sampled_from(["batch", "interactive"])),
        min_size=1,
        max_size=40,
    ),
    executors=st.integers(1, 3),
    keep=st.sampled_from([0, 4]),
    data=st.data(),
)
def test_whoever_overtakes_whom_all_are_served(
    queue, features: Make, asked: list[tuple[int, int, Any]], executors: int, keep: int, data: st.DataObject
) -> None:
    schedule = queue((1, 4), executors, keep)
    tickets = [ticket(features(history, size), priority=priority) for size, history, priority in asked]
    coming, running = list(tickets), []
    while coming or schedule.alive:
        steps = ["add"] * bool(coming) + ["take"] * (len(running) < executors) + ["finish"] * bool(running)
        step = data.draw(st.sampled_from(steps))
        if step == "add":
            schedule.add(coming.pop(0))
        elif step == "finish":
            finish(schedule, running.pop(data.draw(st.integers(0, len(running) - 1))))
        elif job := schedule.take(1.0):
            running.append(job)
        else:
            assert running or not schedule.alive, "an idle device has nothing left to do"
    assert [one.error for one in tickets] == [None] * len(tickets)
    assert schedule.devices[0].work_ms == 0.0


def test_a_batch_encode_that_an_interactive_request_waits_for_is_postponed_no_more(queue, features: Make) -> None:
    schedule = queue((1, 4), keep=4)
    batch = batch_of(3, features)
    for one in batch:
        schedule.add(one)
    first = take(schedule)
    assert (first.launch.kind, first.requests()) == ("encode", {batch[0]})
    schedule.add(ticket(batch[2].features))
    job = take(schedule)
    assert (job.launch.kind, job.requests()) == ("encode", {batch[2]})


def test_batch_requests_that_are_late_are_told_so_though_they_are_planned(queue, features: Make) -> None:
    schedule = queue((1, 4))
    batch = batch_of(8, features, deadline=50.0)
    for one in batch:
        schedule.add(one)
    running = take_at(schedule, 10.0).requests()
    schedule.drop_late(50.0)
    late = schedule.pop_settled()
    assert set(late) == set(batch) - running
    assert all(isinstance(one.error, DeadlineExceeded) for one in late)
    assert schedule.alive == len(running)


@pytest.mark.parametrize(("launch", "shared"), [(0.05, 1), (1.0, 4)])
def test_who_has_the_same_history_waits_only_where_to_encode_it_pays(
    spec: ModelSpec, features: Make, launch: float, shared: int
) -> None:
    """Launches that cost next to nothing but themselves are shared, whoever's histories are in them."""
    shapes = [Profile(users, 30, 16) for users in (1, 4)]
    profiles = ProfileSet(spec, shapes, costs(shapes, launch=launch))
    pool = StatePool(HashEngine(spec, shapes, costs(shapes)), profiles, 1, 4, Metrics())
    schedule = Schedule([Device("cpu", profiles, Reuse(pool, profiles, 4, Metrics()), 1)], plan)
    for _ in range(4):
        schedule.add(ticket(features(1, 5)))
    assert len(take(schedule).parts) == shared
