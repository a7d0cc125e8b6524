"""A real engine whose answers can be recognised, and requests for it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from flame.config import OrchestratorConfig
from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.sampling import random_words
from flame.engine.spec import ClimberConfig, ModelSpec, Profile, ProfileCost, Task
from flame.layout import CANDIDATES, LENGTHS, SCENARIO, PackedLayout, PackedViews
from flame.metrics import Metrics
from flame.orchestrator.pool import Orchestrator
from flame.records import FeatureCounts, Features
from flame.schema import Field, InputSchema, ItemTable, SequenceSpec
from tests.faulty_engine import GARBAGE, FaultyEngine, until


class HashState:
    """The digest of one encoded history; None as long as nothing was encoded into it."""

    nbytes = 8
    digest: int | None = None


def history_digest(views: PackedViews, slot: int) -> int:
    header = views.header[slot]
    sequences = views.events.shape[1]
    digest = zlib.crc32(header[[SCENARIO, *range(LENGTHS, LENGTHS + sequences)]].tobytes())
    for sequence in range(sequences):
        digest = zlib.crc32(views.events[slot, sequence, : header[LENGTHS + sequence]].tobytes(), digest)
    return digest


def hashed_scores(views: PackedViews, slot: int, digest: int, tasks: int) -> NDArray[np.float32]:
    """Scores `[candidates, tasks]`, each a hash of the user, the history, its own candidate and the task."""
    header = views.header[slot].copy()
    count = header[CANDIDATES]
    header[CANDIDATES] = 0
    seed = np.uint64(zlib.crc32(header.tobytes(), digest))
    words = views.candidates[slot, :count].view(np.uint32).astype(np.uint64)
    mixed = (words * (2 * np.arange(words.shape[1], dtype=np.uint64) + 2654435761)).sum(axis=1) ^ seed
    mixed = mixed[:, None] * (np.arange(tasks, dtype=np.uint64) + 0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(40)).astype(np.float32)


class HashEngine(Engine):
    """Scores are hashes of all that a candidate's score may depend on, and of nothing else.

    Mixing up requests, slots, states or slices changes them. Buffers hold NaN where a launch was not given values,
    and lose what they held at the end of every launch.
    """

    backend = "hash"
    device = "cpu"
    precision = "fp32"

    def __init__(self, spec: ModelSpec, profiles: Sequence[Profile], costs: dict[Profile, ProfileCost]) -> None:
        self.spec, self.profiles, self.costs = spec, tuple(profiles), costs

    def buffers(self, profile: Profile) -> LaunchBuffers:
        layout = self.spec.layout(profile)
        words = np.full(layout.words, GARBAGE, np.int32)
        scores = np.full((profile.users, profile.candidates, len(self.spec.tasks)), np.nan, np.float32)
        return LaunchBuffers(profile, layout, words, scores, torch.from_numpy(words), torch.from_numpy(scores))

    def state(self, history: int) -> HistoryState:
        return HashState()

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        views = buffers.layout.views(buffers.words)
        self._score(buffers, [history_digest(views, slot) for slot in range(users)])

    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        views = buffers.layout.views(buffers.words)
        for slot, state in enumerate(states):
            assert isinstance(state, HashState)
            state.digest = history_digest(views, slot)
        buffers.words[:] = GARBAGE

    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        digests = [state.digest for state in states if isinstance(state, HashState) and state.digest is not None]
        assert len(digests) == len(states), "scored against a state that holds no history"
        self._score(buffers, digests)

    def _score(self, buffers: LaunchBuffers, digests: list[int]) -> None:
        views = buffers.layout.views(buffers.words)
        buffers.scores[:] = np.nan
        assert len(digests) <= buffers.profile.users
        assert not views.header[len(digests) :].any(), "headers of unused slots must be zero"
        for slot, digest in enumerate(digests):
            given = views.candidates[slot, :, 0] != GARBAGE
            assert given.sum() == views.header[slot, CANDIDATES], "as many candidates as the header says, and no more"
            scores = hashed_scores(views, slot, digest, len(self.spec.tasks))
            buffers.scores[slot, : len(scores)] = scores
        buffers.words[:] = GARBAGE

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def spec() -> ModelSpec:
    schema = InputSchema(
        ItemTable(vocabulary=5000, dim=8),
        max_history=30,
        max_candidates=200,
        actions=3,
        scenarios=4,
        item=(Field("genre", "int32", vocabulary=50), Field("price", "float32")),
        user=(Field("age", "int32", vocabulary=9),),
        context=(Field("hour", "float32"),),
        sequences=(SequenceSpec("older", "part", 0, of=2), SequenceSpec("newer", "part", 1, of=2)),
    )
    return ModelSpec("hashed", "1", (Task("click"), Task("like")), schema, climber=ClimberConfig(8, 1, 1, 8))


@pytest.fixture
def features(spec: ModelSpec) -> Callable[..., Features]:
    """Makes the features of a request from a seed: `features(seed, candidates, events per sequence)`."""

    def make(seed: int, candidates: int, events: Sequence[int] = (15, 15)) -> Features:
        layout = PackedLayout(spec.record, 1, max(events), candidates)
        words = random_words(spec, layout, [events], [candidates], np.random.default_rng(seed))
        fingerprint = history_digest(layout.views(words), 0).to_bytes(8, "little")
        return Features(words, layout, tuple(events), fingerprint, FeatureCounts())

    return make


@pytest.fixture
def page(features: Callable[..., Features]) -> Callable[..., Features]:
    """A request of its own (`seed`: candidates, user, context) with the history and the scenario of another seed."""

    def make(history: int, seed: int, candidates: int = 5) -> Features:
        past, own = features(history, 1), features(1000 + seed, candidates)
        mine, theirs = own.layout.views(own.words), past.layout.views(past.words)
        mine.events[:] = theirs.events
        mine.header[0, SCENARIO] = theirs.header[0, SCENARIO]
        return replace(own, fingerprint=past.fingerprint)

    return make


@pytest.fixture
def expected(spec: ModelSpec) -> Callable[[Features], NDArray[np.float32]]:
    """The scores that a request must get, worked out from its own buffer."""

    def score(features: Features) -> NDArray[np.float32]:
        views = features.layout.views(features.words)
        return hashed_scores(views, 0, history_digest(views, 0), len(spec.tasks))

    return score


def costs(profiles: Sequence[Profile], *, launch: float = 0.05) -> dict[Profile, ProfileCost]:
    """Costs that make long requests encode and several users share launches."""
    return {
        p: ProfileCost(
            launch + 0.01 * p.users * p.history + 0.001 * p.users * p.candidates,
            launch + 0.01 * p.users * p.history,
            launch + 0.001 * p.users * p.candidates,
        )
        for p in profiles
    }


@pytest.fixture
def start_devices(spec: ModelSpec) -> Iterator[Callable[..., tuple[Orchestrator, list[FaultyEngine], Metrics]]]:
    """Starts an orchestrator on a `FaultyEngine` for each device; all are closed at the end of the test, healed.

    Keeps no states unless told: most tests count launches, and requests of theirs have histories in common.
    """
    started: list[tuple[Orchestrator, list[FaultyEngine]]] = []

    def make(
        devices: int,
        users: Sequence[int] = (1,),
        sizes: Sequence[int] = (16, 64),
        histories: Sequence[int] = (30,),
        **settings: Any,
    ) -> tuple[Orchestrator, list[FaultyEngine], Metrics]:
        profiles = [Profile(user, history, size) for user in users for history in histories for size in sizes]
        engines = [FaultyEngine(HashEngine(spec, profiles, costs(profiles))) for _ in range(devices)]
        if devices > 1:
            for number, engine in enumerate(engines):
                engine.device = f"cpu:{number}"
        metrics = Metrics()
        orchestrator = Orchestrator(engines, OrchestratorConfig(**{"keep_states": 0} | settings), metrics)
        started.append((orchestrator, engines))
        return orchestrator, engines, metrics

    yield make
    for orchestrator, engines in started:
        for engine in engines:
            engine.heal()
        orchestrator.close()
        until(lambda ended=orchestrator: not ended.running)


@pytest.fixture
def start(start_devices: Callable[..., Any]) -> Callable[..., tuple[Orchestrator, FaultyEngine, Metrics]]:
    """The same on one device."""

    def make(*arguments: Any, **settings: Any) -> tuple[Orchestrator, FaultyEngine, Metrics]:
        orchestrator, (engine,), metrics = start_devices(1, *arguments, **settings)
        return orchestrator, engine, metrics

    return make
