"""Several devices behind one queue: load spreads, histories are found where they lie, and a dead device is left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flame.errors import EngineFailed, ExecutionError, FlameError
from flame.orchestrator.device import Device
from flame.orchestrator.job import Job
from flame.orchestrator.outcome import Scored
from flame.orchestrator.plan import plan
from flame.orchestrator.reuse import Reuse
from flame.orchestrator.schedule import Schedule
from flame.orchestrator.states import StatePool
from flame.orchestrator.ticket import Ticket
from flame.records import Features
from tests.faulty_engine import FaultyEngine, until
from tests.orchestrator.asking import ask, nobody
from tests.orchestrator.conftest import HashState

Make = Callable[..., Features]
Expected = Callable[[Features], NDArray[np.float32]]

OVERHEAD_S = 1e-6


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.orchestrator.supervise._PAUSE_S", 0.001)


@pytest.fixture
def queue(start) -> Callable[..., Schedule]:
    """A schedule by itself, with devices that keep states."""

    def make(devices: int, executors: int = 1, users: Sequence[int] = (1,)) -> Schedule:
        orchestrator, engine, metrics = start(users)
        profiles = orchestrator.profiles

        def device(number: int) -> Device:
            pool = StatePool(engine, profiles, executors, 8, metrics)
            return Device(f"cpu:{number}", profiles, Reuse(pool, profiles, 8, metrics), executors)

        return Schedule([device(number) for number in range(devices)], plan)

    return make


def ticket(features: Features) -> Ticket:
    return Ticket(features, nobody, tasks=2, submitted=0.0, deadline=None, cancelled=None)


def run(schedule: Schedule, device: int, now: float = 0.0) -> int:
    """Runs whatever this device can, one launch after the other; how many launches that were."""
    count = 0
    while job := schedule.take(now, device):
        schedule.finish(job, began=now, ended=now)
        count += 1
    return count


def take(schedule: Schedule, device: int, now: float = 0.0) -> Job:
    job = schedule.take(now, device)
    assert job is not None
    return job


def saving_s(schedule: Schedule, one: Ticket) -> float:
    return schedule.devices[0].profiles.tier(one.demand.events).shares[1].saving(one.demand.candidates) / 1e3


@pytest.mark.parametrize("home", [0, 1, 2])
def test_a_history_is_found_where_it_lies_when_that_device_is_idle(queue, page: Make, home: int) -> None:
    schedule = queue(3)
    schedule.add(ticket(page(1, 1)))
    assert run(schedule, home)
    again = ticket(page(1, 2))
    schedule.add(again)
    assert schedule.caller(again) == home
    for other in {0, 1, 2} - {home}:
        assert schedule.take(0.0, other) is None
        assert not schedule.has_work(other), "it has been seen and left"
        assert schedule.patience(0.0, other) == pytest.approx(saving_s(schedule, again))
    assert schedule.has_work(home)
    assert run(schedule, home) == 1
    assert again.reused
    assert again.settled


def test_a_request_is_not_left_for_longer_than_its_history_is_worth(queue, page: Make) -> None:
    schedule = queue(2)
    schedule.add(ticket(page(1, 1)))
    run(schedule, 0)
    again = ticket(page(1, 2))
    schedule.add(again)
    worth = saving_s(schedule, again)
    assert schedule.take(5.0, 1) is None
    assert schedule.take(5.0 + 0.9 * worth, 1) is None
    assert schedule.patience(5.0 + 0.9 * worth, 1) == pytest.approx(0.1 * worth)
    assert run(schedule, 1, 5.0 + worth + OVERHEAD_S)
    assert not again.reused
    assert again.settled


def test_what_was_left_is_looked_at_again_when_who_left_it_gets_busy(queue, page: Make, features: Make) -> None:
    schedule = queue(2, executors=2)
    schedule.add(ticket(page(1, 1)))
    run(schedule, 0)
    schedule.add(ticket(features(8, 100)))
    encode = take(schedule, 1)
    schedule.add(ticket(page(1, 2)))
    assert schedule.take(0.0, 1) is None
    assert not schedule.has_work(1)
    schedule.finish(encode, began=0.0, ended=0.0)
    while schedule.devices[1].has_ready:
        assert take(schedule, 1).launch.kind == "score"
    assert schedule.has_work(1), "else nobody would see when it is no longer worth waiting"


def test_a_request_is_not_left_for_a_device_with_too_much_to_do(queue, page: Make, features: Make) -> None:
    schedule = queue(2)
    schedule.add(ticket(page(1, 1)))
    run(schedule, 0)
    schedule.add(ticket(features(77, 200)))
    busy = take(schedule, 0)
    again = ticket(page(1, 2))
    schedule.add(again)
    assert schedule.devices[0].work_ms / 1e3 > saving_s(schedule, again)
    assert run(schedule, 1)
    assert again.settled
    schedule.finish(busy, began=0.0, ended=0.0)
    run(schedule, 0)
    assert schedule.devices[0].work_ms == schedule.devices[1].work_ms == 0.0


def test_what_is_left_for_a_device_counts_as_its_work(queue, page: Make) -> None:
    """Of many requests with one history, its device gets those for which the wait is worth it, others the rest."""
    schedule = queue(2)
    schedule.add(ticket(page(1, 0)))
    run(schedule, 0)
    many = [ticket(page(1, seed, 60)) for seed in range(1, 40)]
    for one in many:
        schedule.add(one)
    assert not take(schedule, 1).tickets() & set(many[:2]), "the first are left"
    left = [one for one in many if one.passed_over is not None]
    score = schedule.devices[0].profiles.tier(15).shares[1].score.costs[60]
    assert (len(left) - 1) * score < 1e3 * saving_s(schedule, many[0]) <= len(left) * score
    assert left == many[: len(left)]


def test_a_device_without_executors_is_no_reason_to_wait(queue, page: Make) -> None:
    schedule = queue(2)
    schedule.add(ticket(page(1, 1)))
    run(schedule, 0)
    schedule.staff(-1, 0)
    again = ticket(page(1, 2))
    schedule.add(again)
    assert schedule.caller(again) == 1
    assert run(schedule, 1)
    assert again.settled


def test_the_requests_of_a_device_that_is_left_out_are_planned_anew(queue, page: Make, features: Make) -> None:
    schedule = queue(2, users=(1, 4))
    one, two, begun = (ticket(page(1, 1, 100)), ticket(page(1, 2, 100)), ticket(features(9, 200)))
    schedule.add(begun)
    schedule.finish(take(schedule, 0), began=0.0, ended=0.0)
    assert begun.launches
    assert not begun.settled
    for late in (one, two):
        schedule.add(late)
    schedule._batching.plan(0, 0.0)
    schedule.staff(-1, 0)
    error = ExecutionError("gone")
    schedule.leave_out(0, error)
    assert begun.error is error
    assert (one.error, two.error) == (None, None)
    assert schedule.waiting == 0
    assert run(schedule, 1)
    assert all(late.settled and late.error is None for late in (one, two))
    assert schedule.alive == 0
    for device in schedule.devices:
        assert set(device.reuse.pool.free().values()) == {12}


def test_two_launches_that_hang_with_one_state_lose_it_once(queue, features: Make) -> None:
    schedule = queue(1, executors=2)
    pool = schedule.devices[0].reuse.pool
    free = pool.free()
    schedule.add(ticket(features(1, 100)))
    schedule.finish(take(schedule, 0), began=0.0, ended=0.0)
    scores = [take(schedule, 0) for _ in range(2)]
    assert {job.launch.kind for job in scores} == {"score"}
    lost = [schedule.give_up(job, began=0.0, now=0.0, error=ExecutionError("hung")) for job in scores]
    assert lost == [[30], []]
    assert pool.free() == {30: free[30] - 1}
    pool.replace(30, HashState())
    assert pool.free() == free
    assert schedule.alive == 0


@settings(
    max_examples=100,
    phases=[Phase.generate, Phase.reuse],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_every_request_ends_wherever_and_whenever_devices_ask(queue, page: Make, data: st.DataObject) -> None:
    """Launches end well, fail or hang (then their states are replaced), and devices die until one is left."""
    schedule = queue(data.draw(st.integers(1, 3), "devices"), executors=2, users=(1, 2))
    devices = schedule.devices
    alive = list(range(len(devices)))
    free = [device.reuse.pool.free() for device in devices]
    running: list[Job] = []
    tickets: list[Ticket] = []
    now = 0.0
    for step in range(data.draw(st.integers(1, 40), "steps")):
        now += data.draw(st.sampled_from([0.0, 1e-5, 1e-3]))
        action = data.draw(st.sampled_from(["add", "add", "take", "take", "finish", "fail", "hang", "die"]))
        if action == "add":
            tickets.append(ticket(page(data.draw(st.integers(0, 4)), step, data.draw(st.integers(1, 150)))))
            schedule.add(tickets[-1])
        elif action == "take":
            device = data.draw(st.sampled_from(alive))
            if devices[device].idle and (job := schedule.take(now, device)):
                assert job.device == device
                running.append(job)
        elif action == "die":
            if len(alive) > 1:
                device = alive.pop()
                for job in [job for job in running if job.device == device]:
                    running.remove(job)
                    schedule.finish(job, began=now, ended=now, error=ExecutionError("failed"))
                schedule.staff(-2, device)
                schedule.leave_out(device, ExecutionError("gone"))
        elif running:
            job = running.pop(data.draw(st.integers(0, len(running) - 1)))
            error = None if action == "finish" else ExecutionError("failed")
            if action == "hang":
                for history in schedule.give_up(job, began=now, now=now, error=ExecutionError("hung")):
                    devices[job.device].reuse.pool.replace(history, HashState())
            else:
                schedule.finish(job, began=now, ended=now, error=error)
    for job in running:
        schedule.finish(job, began=now, ended=now)
    rounds = 0
    while schedule.alive:
        now += 1e-3
        rounds += 1
        assert rounds < 10 * len(tickets) + 10, "somebody starves"
        for device in alive:
            run(schedule, device, now)
    assert all(one.settled for one in tickets)
    assert all(run(schedule, device, now) == 0 for device in alive), "what is left, nobody needs"
    assert schedule.waiting == 0
    assert [device.work_ms for device in devices] == [0.0] * len(devices)
    assert [device.reuse.pool.free() for device in devices] == free


def test_load_spreads_over_all_devices(start_devices, features: Make, expected: Expected) -> None:
    orchestrator, engines, metrics = start_devices(3, (1, 4), executors=2, max_in_flight=400, keep_states=4)
    requests = [features(seed, int(size)) for seed, size in enumerate(np.random.default_rng(1).integers(1, 200, 300))]
    both = threading.Barrier(3)

    def meet(engine: FaultyEngine) -> Callable[..., bool]:
        first = iter([True])
        lock = threading.Lock()

        def when(*_: object) -> bool:
            with lock:
                mine = next(first, False)
            if mine:
                both.wait(60)
            return False

        return when

    for engine in engines:
        engine.fails = meet(engine)  # the first launches of all devices run at the same time
    with ThreadPoolExecutor(8) as clients:
        futures = list(clients.map(partial(ask, orchestrator), requests))
    for request, future in zip(requests, futures, strict=True):
        np.testing.assert_array_equal(future.result(60).scores, expected(request))
    assert all(engine.log for engine in engines)
    for number in range(3):
        assert (metrics.registry.get_sample_value("flame_busy_seconds_total", {"device": f"cpu:{number}"}) or 0) > 0


def test_pages_of_a_user_go_where_the_history_is(start_devices, page: Make, expected: Expected) -> None:
    orchestrator, engines, _ = start_devices(2, executors=1, keep_states=8)
    for history in range(4):
        request = page(history, 0, 100)
        np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))
    for seed in range(1, 10):
        for history in range(4):
            request = page(history, seed, 100)
            scored = ask(orchestrator, request).result(60)
            np.testing.assert_array_equal(scored.scores, expected(request))
    kinds = [kind for engine in engines for kind, _ in engine.log]
    # An idle device leaves a request for at most what reuse saves, so a slow machine may encode some twice.
    assert kinds.count("encode") + kinds.count("rank") <= 8


def test_a_dead_device_is_left_out_and_the_others_serve(start_devices, page: Make, expected: Expected) -> None:
    orchestrator, engines, metrics = start_devices(2, executors=2, max_in_flight=200, keep_states=4)
    engines[0].allocates = False
    engines[0].fails = lambda kind, buffers: True
    requests = [page(seed % 6, seed, 150) for seed in range(60)]
    futures = [ask(orchestrator, request) for request in requests]
    errors = [future.exception(60) for future in futures]
    assert sum(isinstance(error, ExecutionError) for error in errors) <= 8
    until(lambda: metrics.registry.get_sample_value("flame_executors", {"device": "cpu:0", "state": "out"}) == 2)
    for request, future, error in zip(requests, futures, errors, strict=True):
        if error is None:
            np.testing.assert_array_equal(future.result().scores, expected(request))
    for request in requests:
        np.testing.assert_array_equal(ask(orchestrator, request).result(60).scores, expected(request))
    assert not orchestrator.failed.done()
    engines[1].allocates = False
    engines[1].fails = lambda kind, buffers: True
    while not orchestrator.failed.done():
        try:
            ask(orchestrator, requests[0]).exception(60)
        except EngineFailed:
            break
    with pytest.raises(EngineFailed):
        ask(orchestrator, requests[0])


def test_nothing_is_lost_on_several_devices_with_every_kind_of_trouble(
    start_devices, page: Make, expected: Expected
) -> None:
    orchestrator, engines, metrics = start_devices(
        3, (1, 4), executors=2, max_in_flight=100, keep_states=4, launch_limit_ms=40
    )
    devices = orchestrator._schedule.devices
    free = [device.reuse.pool.free() for device in devices]
    rng, lock = np.random.default_rng(2), threading.Lock()

    def by_chance(share: float) -> Callable[..., bool]:
        def when(*_: object) -> bool:
            with lock:
                return rng.random() < share

        return when

    for engine in engines:
        engine.fails, engine.hangs = by_chance(0.02), by_chance(0.005)
    requests = [page(seed % 9, seed, int(size)) for seed, size in enumerate(rng.integers(1, 200, 50))]
    scores = [expected(request) for request in requests]

    def client(number: int) -> str:
        gone = threading.Event()
        deadline = time.monotonic() + 0.003 if number % 13 == 0 else None
        future: Future[Scored] = ask(orchestrator, requests[number % 50], deadline=deadline, cancelled=gone)
        if number % 11 == 0:
            gone.set()
        error = future.exception(60)
        if error is None:
            np.testing.assert_array_equal(future.result().scores, scores[number % 50])
        assert error is None or isinstance(error, FlameError)
        return type(error).__name__

    done = threading.Event()

    def release() -> None:
        while not done.wait(0.06):
            for engine in engines:
                engine.release()

    releaser = threading.Thread(target=release)
    releaser.start()
    try:
        with ThreadPoolExecutor(24) as clients:
            outcomes = list(clients.map(client, range(1500)))
        until(lambda: sum(device.idle for device in orchestrator._schedule.devices) == 6)
    finally:
        done.set()
        releaser.join()
    assert {"NoneType", "ExecutionError"} <= set(outcomes)
    assert "EngineFailed" not in outcomes
    assert orchestrator._schedule.alive == orchestrator._schedule.waiting == 0
    assert [device.reuse.pool.free() for device in devices] == free
    assert [device.work_ms for device in devices] == [0.0] * 3
    assert metrics.registry.get_sample_value("flame_queued_launches") == 0


def test_no_device_plans_what_another_could_run_soon(queue, features: Make) -> None:
    """Device 0 is free a moment before device 1."""
    schedule = queue(2, users=(1, 2, 4))
    for number in range(2):
        schedule.add(ticket(features(number, 5)))
        take(schedule, number)
    running: dict[int, Job | None] = {}
    for number in range(2, 34):
        schedule.add(ticket(features(number, 5)))
    for device in range(2):
        schedule.devices[device].idle += 1
        running[device] = take(schedule, device)
    counts = [0, 0]
    while any(running.values()):
        for device, job in running.items():
            if job is not None:
                counts[device] += 1
                schedule.finish(job, began=0.0, ended=0.01)
                running[device] = schedule.take(0.0, device)
    assert max(counts) - min(counts) <= 1


def test_what_a_device_without_executors_has_planned_goes_to_another(queue, features: Make) -> None:
    schedule = queue(2)
    waiting = [ticket(features(number, 5)) for number in range(4)]
    for one in waiting:
        schedule.add(one)
    job = take(schedule, 0)
    schedule.finish(job, began=0.0, ended=0.01, error=ExecutionError("it failed"))
    schedule.staff(-1, 0)
    schedule.hand_over(0)
    run(schedule, 1)
    assert all(one.settled for one in waiting)
    assert sum(one.error is None for one in waiting) == len(waiting) - len(job.requests())
    assert schedule.take(0.0, 0) is None
