"""A ranker whose features are watched and whose engine can be held and made to fail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from flame.config import Config, OrchestratorConfig
from flame.engine.backends.base import HistoryState, LaunchBuffers
from flame.engine.backends.eager import EagerEngine
from flame.engine.package import ModelPackage
from flame.engine.spec import Profile
from flame.errors import StoreUnavailable
from flame.features.pipeline import FeaturePipeline
from flame.metrics import Metrics
from flame.orchestrator.profiles import default_profiles
from flame.ranker import Ranker
from flame.records import Features, RankRequest, RankResponse
from tests.faulty_engine import FaultyEngine
from tests.ranker.world import FEATURES, filled_store


class WatchedPipeline(FeaturePipeline):
    """Checks that every buffer comes back once, spoils it then, and can fail."""

    fails = False
    gathered = 0

    def gather(self, request: RankRequest) -> Features:
        self.gathered += 1
        if self.fails:
            raise StoreUnavailable("the store is on fire")
        features = super().gather(request)
        self.lent[id(features)] = features
        return features

    def release(self, features: Features) -> None:
        assert self.lent.pop(id(features)) is features, "released twice"
        features.words[:] = np.array(np.nan, np.float32).view(np.int32)
        super().release(features)

    @property
    def lent(self) -> dict[int, Features]:
        return self.__dict__.setdefault("_lent", {})


class SpoilingEngine(FaultyEngine):
    """The oracle with faults, which can also give scores that are no numbers; closed once."""

    spoils = False
    closed = False

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        super().rank(buffers, users)
        self._spoil(buffers)

    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        super().score(buffers, states)
        self._spoil(buffers)

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        super().close()

    def _spoil(self, buffers: LaunchBuffers) -> None:
        """One score that is no number, if wanted."""
        if self.spoils:
            buffers.scores[0, 0, 0] = np.nan


class Bench:
    """A ranker and its parts, for tests to reach into."""

    def __init__(self, package: ModelPackage, settings: OrchestratorConfig) -> None:
        schema = package.spec.input
        self.spec = package.spec
        self.package = package
        self.metrics = Metrics()
        self.engine = SpoilingEngine(EagerEngine(package, default_profiles(package.spec, settings)))
        self.features = WatchedPipeline(schema, filled_store(schema), FEATURES, self.metrics)
        self.ranker = Ranker(self.engine, self.features, Config(orchestrator=settings), self.metrics)
        self._reference = FeaturePipeline(schema, filled_store(schema), FEATURES, Metrics())

    def oracle(self, request: RankRequest) -> NDArray[np.float32]:
        """Scores of all tasks from one launch of exactly the request's size, in which nothing is split or copied."""
        features = self._reference.gather(request)
        count = features.layout.candidates
        profile = Profile(1, self.spec.input.max_history, count)
        engine = EagerEngine(self.package, [profile])
        scores = np.full((1, count, len(self.spec.tasks)), np.nan, np.float32)
        words = features.words[: features.layout.words]
        engine.rank(
            LaunchBuffers(profile, features.layout, words, scores, torch.from_numpy(words), torch.from_numpy(scores)),
            1,
        )
        self._reference.release(features)
        return scores[0]

    def clean(self) -> bool:
        """Whether nothing is held that a finished request should have given back."""
        orchestrator = self.ranker._orchestrator
        return (
            not self.features.lent
            and orchestrator.admission.in_flight == 0
            and orchestrator._schedule.alive == orchestrator._schedule.waiting == 0
        )

    def close(self) -> None:
        self.engine.heal()
        self.ranker.close()
        self._reference.close()
        assert self.clean()
        assert self.engine.closed


def close_to(response: RankResponse, expected: NDArray[np.float32], tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(response.scores, expected, rtol=0, atol=tolerance)
