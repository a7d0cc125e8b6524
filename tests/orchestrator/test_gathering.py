"""Engines that fetch requests from where they lie: what a slot's source says, and that nothing is copied beside it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from flame.config import OrchestratorConfig
from flame.engine.backends.base import HistoryState, LaunchBuffers
from flame.engine.spec import ModelSpec, Profile, ProfileCost
from flame.errors import ExecutionError, FlameError
from flame.layout import CANDIDATES, LENGTHS, SOURCE_CANDIDATES, SOURCE_CAPACITY, SOURCE_EVENTS
from flame.metrics import Metrics
from flame.orchestrator import pool
from flame.orchestrator.outcome import Outcome, Scored
from flame.orchestrator.pool import Orchestrator
from flame.records import Features
from tests.faulty_engine import GARBAGE, FaultyEngine, nth, until
from tests.orchestrator.asking import ask
from tests.orchestrator.conftest import HashEngine

MakeFeatures = Callable[..., Features]
Expected = Callable[[Features], NDArray[np.float32]]


class GatheringEngine(HashEngine):
    """Reads events and candidates from its slots' sources alone, and counts the launches whose words had none."""

    gathers = True

    def __init__(self, spec: ModelSpec, profiles: Sequence[Profile], costs: dict[Profile, ProfileCost]) -> None:
        super().__init__(spec, profiles, costs)
        self.fetched = self.copied = 0

    def buffers(self, profile: Profile) -> LaunchBuffers:
        plain = super().buffers(profile)
        sources = plain.layout.sources(plain.words)
        return LaunchBuffers(
            profile, plain.layout, plain.words, plain.scores, plain.device_words, plain.device_scores, sources=sources
        )

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        self._gather(buffers, users, events=True, candidates=True)
        super().rank(buffers, users)

    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        self._gather(buffers, len(states), events=True, candidates=False)
        super().encode(buffers, states)

    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        self._gather(buffers, len(states), events=False, candidates=True)
        super().score(buffers, states)

    def _gather(self, buffers: LaunchBuffers, users: int, *, events: bool, candidates: bool) -> None:
        assert buffers.sources is not None
        views, record = buffers.layout.views(buffers.words), buffers.layout.record
        if (views.events == GARBAGE).all() and (views.candidates == GARBAGE).all():
            self.fetched += 1
        else:
            self.copied += 1
        for slot in range(users):
            header, source = views.header[slot], buffers.sources[slot]
            for sequence in range(record.sequences if events else 0):
                first = source[SOURCE_EVENTS] + 4 * sequence * source[SOURCE_CAPACITY] * record.event_words
                length = int(header[LENGTHS + sequence])
                views.events[slot, sequence, :length] = words_at(first, length * record.event_words, length)
            if candidates:
                count = int(header[CANDIDATES])
                found = words_at(source[SOURCE_CANDIDATES], count * record.candidate_words, count)
                views.candidates[slot, :count] = found


def words_at(address: int, words: int, rows: int) -> NDArray[np.int32]:
    if not words:
        return np.zeros((0, 1), np.int32)
    return np.frombuffer(ctypes.string_at(int(address), 4 * words), np.int32).reshape(rows, -1)


@pytest.fixture
def engine(spec: ModelSpec) -> GatheringEngine:
    profiles = [Profile(users, 30, size) for users in (1, 4) for size in (16, 64)]
    costs = {one: ProfileCost(1.0 + one.users / 8, 0.2 + one.users / 16, 0.3 + one.users / 16) for one in profiles}
    return GatheringEngine(spec, profiles, costs)


@pytest.fixture
def orchestrator(engine: GatheringEngine) -> Iterator[Orchestrator]:
    config = OrchestratorConfig(executors=2, keep_states=4, users=(1, 4), max_in_flight=256)
    running = Orchestrator(engine, config, Metrics())
    yield running
    running.close()


@pytest.mark.parametrize("pinned", ["all", "none", "some"])
def test_every_candidate_is_scored_wherever_it_lies(
    engine: GatheringEngine, orchestrator: Orchestrator, features: MakeFeatures, expected: Expected, pinned: str
) -> None:
    generator = np.random.default_rng(5)
    requests = []
    for seed in range(60):
        own = features(seed, int(generator.integers(1, 200)), generator.integers(0, 16, 2).tolist())
        requests.append(replace(own, pinned=pinned == "all" or (pinned == "some" and seed % 3 > 0)))
    asked = [ask(orchestrator, one) for one in requests]
    for one, answer in zip(requests, asked, strict=True):
        assert (answer.result(20).scores == expected(one)).all()
    assert bool(engine.fetched) == (pinned != "none")
    assert bool(engine.copied) == (pinned != "all")


def test_histories_that_are_shared_are_fetched_too(
    engine: GatheringEngine,
    orchestrator: Orchestrator,
    page: Callable[..., Features],
    expected: Expected,
) -> None:
    reused = 0
    for seed in range(40):
        one = replace(page(seed // 8, seed, 5 + seed), pinned=True)
        answer = ask(orchestrator, one).result(20)
        assert (answer.scores == expected(one)).all()
        reused += answer.reused
    assert reused
    assert not engine.copied


def test_a_slot_that_was_fetched_into_can_be_copied_into(
    engine: GatheringEngine, orchestrator: Orchestrator, features: MakeFeatures, expected: Expected
) -> None:
    """Its source is its own again."""
    for seed in range(12):
        one = replace(features(seed, 9), pinned=seed % 2 == 0)
        assert (ask(orchestrator, one).result(20).scores == expected(one)).all()
    assert engine.copied
    assert engine.fetched


class Telltale(GatheringEngine):
    """Counts the launches in which something is read that was written after its request had ended."""

    strange = 0

    def _gather(self, buffers: LaunchBuffers, users: int, *, events: bool, candidates: bool) -> None:
        super()._gather(buffers, users, events=events, candidates=candidates)
        views = buffers.layout.views(buffers.words)
        self.strange += bool((views.candidates == FOREIGN).any() or (views.events == FOREIGN).any())


FOREIGN = 123_456_789


@pytest.fixture
def telltale(engine: GatheringEngine) -> FaultyEngine:
    return FaultyEngine(Telltale(engine.spec, engine.profiles, dict(engine.costs)))


def spoiling(orchestrator: Orchestrator, features: Features) -> Outcome:
    """What becomes of a request whose memory goes to somebody else as soon as it may."""
    ended: Future[Outcome] = Future()

    def end(outcome: Outcome) -> None:
        if not (isinstance(outcome, FlameError) and outcome.features_lost):
            features.words[:] = FOREIGN
        ended.set_result(outcome)

    orchestrator.submit(features, end)
    return ended.result(20)


def test_memory_of_a_launch_that_was_given_up_stays_as_it_is(telltale: FaultyEngine, features: MakeFeatures) -> None:
    config = OrchestratorConfig(executors=1, keep_states=0, launch_limit_ms=50)
    orchestrator = Orchestrator(telltale, config, Metrics())
    telltale.hangs = nth(1)
    outcome = spoiling(orchestrator, replace(features(1, 9), pinned=True))
    assert isinstance(outcome, ExecutionError)
    assert outcome.features_lost
    telltale.release()
    assert isinstance(spoiling(orchestrator, replace(features(2, 9), pinned=True)), Scored)
    orchestrator.close()
    until(lambda: not orchestrator.running)
    assert telltale.inner.strange == 0


def test_memory_of_a_launch_that_runs_on_after_the_end_stays_as_it_is(
    telltale: FaultyEngine, features: MakeFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_LAST_LAUNCH_S", 0.05)
    orchestrator = Orchestrator(telltale, OrchestratorConfig(keep_states=0, launch_limit_ms=0), Metrics())
    telltale.gate.clear()
    running = ask(orchestrator, replace(features(1, 9), pinned=True))
    assert telltale.entered.acquire(timeout=20)
    waiting = ask(orchestrator, replace(features(2, 9), pinned=True))
    orchestrator.close()
    assert running.exception(20).features_lost
    assert not waiting.exception(20).features_lost
    telltale.gate.set()
    until(lambda: not orchestrator.running)


def test_a_trial_reads_nothing_of_requests_that_have_ended(telltale: FaultyEngine, features: MakeFeatures) -> None:
    orchestrator = Orchestrator(telltale, OrchestratorConfig(executors=1, keep_states=0), Metrics())
    telltale.fails = nth(2, kinds=("rank", "score"))
    assert isinstance(spoiling(orchestrator, replace(features(1, 9), pinned=True)), Scored)
    failed = spoiling(orchestrator, replace(features(2, 9), pinned=True))
    assert isinstance(failed, ExecutionError)
    assert not failed.features_lost
    assert isinstance(spoiling(orchestrator, replace(features(3, 9), pinned=True)), Scored)
    orchestrator.close()
    assert telltale.inner.strange == 0
