"""An engine that does nothing: what is left of a request is everything but the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.spec import Profile


class IdleState:
    """No history."""

    nbytes = 0


class IdleEngine(Engine):
    """Has the model, profiles and costs of another engine, so that plans are the same; its launches return at once.

    Scores are zero. Requests are copied into its launch buffers where they are into those of the other engine.
    """

    backend = "idle"
    device = "cpu"

    def __init__(self, like: Engine) -> None:
        self.spec, self.precision = like.spec, like.precision
        self.profiles, self.costs = like.profiles, like.costs
        self.gathers = like.gathers

    def buffers(self, profile: Profile) -> LaunchBuffers:
        layout = self.spec.layout(profile)
        words = np.zeros(layout.words, np.int32)
        scores = np.zeros((profile.users, profile.candidates, len(self.spec.tasks)), np.float32)
        sources = layout.sources(words) if self.gathers else None
        device_words, device_scores = torch.from_numpy(words), torch.from_numpy(scores)
        return LaunchBuffers(profile, layout, words, scores, device_words, device_scores, sources=sources)

    def state(self, history: int) -> HistoryState:
        return IdleState()

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        """Returns."""

    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        """Returns."""

    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        """Returns."""

    def close(self) -> None:
        """Holds nothing."""
