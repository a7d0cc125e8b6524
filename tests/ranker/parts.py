"""A ranker whose features are watched and whose engine can be held and made to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from flame.config import Config, OrchestratorConfig
from flame.engine.backends.base import LaunchBuffers
from flame.engine.backends.eager import EagerEngine
from flame.engine.package import ModelPackage
from flame.engine.spec import Profile
from flame.errors import StoreUnavailable
from flame.features.pipeline import FeaturePipeline
from flame.metrics import Metrics
from flame.orchestrator.profiles import default_profiles
from flame.ranker import Ranker
from flame.records import Features, RankRequest, RankResponse
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


class GatedEngine(EagerEngine):
    """The oracle, which can be held and made to fail."""

    def __init__(self, package: ModelPackage, profiles: tuple[Profile, ...]) -> None:
        super().__init__(package, profiles)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fails: Callable[[], bool] = lambda: False
        self.spoils = False
        self.closed = False
        self.launches = 0

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        self._pass()
        super().rank(buffers, users)
        self._spoil(buffers)

    def score(self, buffers: LaunchBuffers, states: object) -> None:
        self._pass()
        super().score(buffers, states)
        self._spoil(buffers)

    def _spoil(self, buffers: LaunchBuffers) -> None:
        """One score that is no number, if wanted."""
        if self.spoils:
            buffers.scores[0, 0, 0] = np.nan

    def _pass(self) -> None:
        self.launches += 1
        self.entered.release()
        assert self.gate.wait(60), "the test forgot to open the gate"
        if self.fails():
            raise RuntimeError("device memory at 0xdeadbeef is gone")

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        super().close()


class Bench:
    """A ranker and its parts, for tests to reach into."""

    def __init__(self, package: ModelPackage, settings: OrchestratorConfig) -> None:
        schema = package.spec.input
        self.spec = package.spec
        self.package = package
        self.metrics = Metrics()
        self.engine = GatedEngine(package, default_profiles(package.spec, settings))
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
        self.engine.gate.set()
        self.ranker.close()
        self._reference.close()
        assert self.clean()
        assert self.engine.closed


def close_to(response: RankResponse, expected: NDArray[np.float32], tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(response.scores, expected, rtol=0, atol=tolerance)
