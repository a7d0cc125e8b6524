"""Engines that fetch requests from where they lie: what a slot's source says, and that nothing is copied beside it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from flame.config import OrchestratorConfig
from flame.engine.backends.base import HistoryState, LaunchBuffers
from flame.engine.spec import ModelSpec, Profile, ProfileCost
from flame.layout import CANDIDATES, LENGTHS, SOURCE_CANDIDATES, SOURCE_CAPACITY, SOURCE_EVENTS
from flame.metrics import Metrics
from flame.orchestrator.pool import Orchestrator
from flame.records import Features
from tests.faulty_engine import GARBAGE
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
