"""The orchestrator in virtual time: the real admission, queue and planner, and launches that take what they cost.

No threads and no waiting: events happen in order, at times that a seed decides, and so every run is the same.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec.structs import replace

from flame.config import OrchestratorConfig
from flame.engine.sampling import random_words
from flame.engine.spec import HstuConfig, ModelSpec, Profile, ProfileCost, Task
from flame.errors import DeadlineExceeded, RefusedError
from flame.layout import PackedLayout
from flame.metrics import Metrics
from flame.orchestrator.admission import Admission
from flame.orchestrator.device import Device
from flame.orchestrator.job import Job
from flame.orchestrator.permit import Permit
from flame.orchestrator.policies import POLICIES
from flame.orchestrator.profiles import ProfileSet
from flame.orchestrator.reuse import Reuse
from flame.orchestrator.schedule import Schedule
from flame.orchestrator.states import StatePool
from flame.orchestrator.ticket import Ticket
from flame.records import FeatureCounts, Features, Priority, RankRequest
from flame.schema import InputSchema, ItemTable
from tests.orchestrator.conftest import HashEngine

SIZES = (128, 256, 512, 1024)
HISTORY = 64
SPEC = ModelSpec(
    "simulated",
    "1",
    (Task("click"),),
    InputSchema(ItemTable(100, 8), max_history=HISTORY, max_candidates=1024, actions=2),
    hstu=HstuConfig(8, 1, 1, 8, 8),
)


def costs(users: tuple[int, ...]) -> dict[Profile, ProfileCost]:
    """Sharing a launch saves up to a third; a history costs as much as 600 candidates."""
    made = {}
    for width, size in itertools.product(users, SIZES):
        per_user = width * (1.0 if width == 1 else 0.65)
        encode, score = 0.12 * per_user, 0.0002 * size * per_user
        made[Profile(width, HISTORY, size)] = ProfileCost(0.05 + encode + score, 0.04 + encode, 0.03 + score)
    return made


@dataclass(frozen=True)
class World:
    """What a simulated machine is like, beyond what the costs of its profiles say."""

    executors: int = 3
    users: tuple[int, ...] = (1, 2, 4, 8)
    policy: str = "cost"
    keep: int = 0
    slower: float = 1.0
    """Launches take so much longer than they were measured to."""
    noise: float = 0.1
    """Standard deviation of the logarithm of a launch's time."""
    contention: float = 0.0
    """What each other launch that runs adds to the time of one."""
    gather_s: float = 0.0
    overload: Literal["refuse", "truncate"] = "refuse"


@dataclass(frozen=True)
class Arrival:
    """One request that comes `at` a point of virtual time, in seconds."""

    at: float
    user: int
    candidates: int
    priority: Priority = "interactive"
    deadline: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one at a point of time: `refused` at admission, `late`, or `ok` with candidates scored in time."""

    arrival: Arrival
    kind: str
    at: float
    scored: int = 0


class Simulation:
    """One run of one world."""

    def __init__(self, world: World, seed: int = 0) -> None:
        self.now = 0.0
        self.world = world
        self.metrics = Metrics()
        self.outcomes: list[Outcome] = []
        profiles = costs(world.users)
        self.profiles = ProfileSet(SPEC, profiles, profiles)
        config = OrchestratorConfig(executors=world.executors, max_in_flight=5000, overload=world.overload)
        self.admission = Admission(SPEC.input, self.profiles, config, self.metrics, clock=lambda: self.now)
        engine = HashEngine(SPEC, list(profiles), profiles)
        pool = StatePool(engine, self.profiles, world.executors, world.keep, self.metrics)
        reuse = Reuse(pool, self.profiles, world.keep, self.metrics)
        self.schedule = Schedule([Device("virtual", self.profiles, reuse, world.executors)], POLICIES[world.policy])
        self._idle = world.executors
        self._random = np.random.default_rng(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._waiting: dict[Ticket, tuple[Arrival, Permit]] = {}
        self._features = {size: _features(size) for size in SIZES}

    def run(self, arrivals: list[Arrival], until: float = np.inf) -> list[Outcome]:
        """Lets requests come, and time pass up to `until`."""
        for arrival in arrivals:
            self._at(arrival.at, lambda arrival=arrival: self._arrive(arrival))
        while self._events and self._events[0][0] <= until:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        return self.outcomes

    def _at(self, time: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), happen))

    def _arrive(self, arrival: Arrival) -> None:
        ids = np.arange(arrival.candidates)
        request = RankRequest(arrival.user, ids, deadline=arrival.deadline, priority=arrival.priority)
        try:
            permit = self.admission.admit(request)
        except RefusedError:
            self.outcomes.append(Outcome(arrival, "refused", self.now))
        else:
            gathered = self.now + self.world.gather_s * self._random.uniform(0.5, 1.5)
            self._at(gathered, lambda: self._queue(arrival, permit))

    def _queue(self, arrival: Arrival, permit: Permit) -> None:
        features = replace(self._features[permit.candidates], fingerprint=arrival.user.to_bytes(8, "little"))
        ticket = Ticket(
            features,
            permit.release,
            tasks=1,
            submitted=self.now,
            deadline=arrival.deadline,
            cancelled=None,
            user=arrival.user,
            priority=arrival.priority,
        )
        ticket.cost_ms = self.profiles.predict(ticket.demand.events, ticket.demand.candidates)
        self._waiting[ticket] = arrival, permit
        self.schedule.add(ticket)
        self._start()

    def _start(self) -> None:
        """Has every idle executor ask for work."""
        while self._idle and (job := self.schedule.take(self.now)):
            self._idle -= 1
            began, ends = self.now, self.now + self._duration(job)
            self._at(ends, lambda job=job, began=began: self._end(job, began))
        self._answer()

    def _duration(self, job: Job) -> float:
        noise = self._random.normal(-(self.world.noise**2) / 2, self.world.noise)
        running = self.world.executors - self._idle - 1
        price = self.profiles.price(job.launch.profile, job.launch.kind)
        return price * self.world.slower * float(np.exp(noise)) * (1 + self.world.contention * running) / 1e3

    def _end(self, job: Job, began: float) -> None:
        self._idle += 1
        self.schedule.finish(job, began=began, ended=self.now)
        self._start()

    def _answer(self) -> None:
        for ticket in self.schedule.pop_settled():
            arrival, permit = self._waiting.pop(ticket)
            assert ticket.error is None or isinstance(ticket.error, DeadlineExceeded)
            ticket.answer()
            ok = ticket.error is None and (ticket.deadline is None or self.now <= ticket.deadline)
            self.outcomes.append(Outcome(arrival, "ok" if ok else "late", self.now, permit.candidates * ok))


def poisson(
    rate: float,
    count: int,
    deadline_ms: float,
    seed: int = 1,
    user: Callable[[int], int] = lambda number: number,
    priority: Priority = "interactive",
) -> list[Arrival]:
    """`count` requests that come at a rate of so many in a second, with sizes that are equally frequent."""
    random = np.random.default_rng(seed)
    times = random.exponential(1 / rate, count).cumsum()
    sizes = random.choice(SIZES, count)
    return [
        Arrival(float(time), user(number), int(size), priority, float(time) + deadline_ms / 1e3)
        for number, (time, size) in enumerate(zip(times, sizes, strict=True))
    ]


@functools.cache
def capacity(world: World, count: int = 4000) -> tuple[float, float]:
    """What a world serves where there is always more to do: requests and pairs in a second."""
    simulation = Simulation(world)
    sizes = np.random.default_rng(7).choice(SIZES, count)
    outcomes = simulation.run([Arrival(0.0, number, int(size)) for number, size in enumerate(sizes)])
    assert all(outcome.kind == "ok" for outcome in outcomes)
    return count / simulation.now, float(sizes.sum()) / simulation.now


def _features(candidates: int) -> Features:
    layout = PackedLayout(SPEC.record, 1, HISTORY, candidates)
    words = random_words(SPEC, layout, [[HISTORY]], [candidates], np.random.default_rng(0))
    return Features(words, layout, (HISTORY,), b"", FeatureCounts())
