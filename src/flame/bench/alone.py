"""The engine alone, in this process: what a request would cost if there were nothing but the model."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import numpy as np

from flame.config import Config
from flame.engine.backends.base import Engine
from flame.engine.build import build
from flame.engine.package import ModelPackage, load
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile
from flame.errors import ConfigError
from flame.orchestrator.profiles import default_profiles
from flame.ranker import launch_threads


class EngineAlone:
    """An engine as a server with the same settings would have it, with one request in its buffers.

    `history` None is as long as the model takes. Raises `ConfigError` for more than the model or its profiles take.
    """

    def __init__(self, source: str, config: Config, history: int | None, candidates: int, seed: int) -> None:
        package: ModelPackage = load(source, allow_code=config.engine.allow_code)
        self.spec: ModelSpec = package.spec
        self.history = self.spec.input.max_history if history is None else history
        self.profile = self._smallest(default_profiles(self.spec, config.orchestrator), candidates)
        self._engine: Engine = build(package, config.engine, [self.profile], threads=launch_threads(config))
        self._buffers = self._engine.buffers(self.profile)
        lengths = [tuple(sequence.capacity(self.history) for sequence in self.spec.input.sequences)]
        layout = self.spec.layout(self.profile)
        words = random_words(self.spec, layout, lengths, [candidates], np.random.default_rng(seed))
        self._buffers.words[: layout.words] = words
        self.launch(3)

    def launch(self, times: int) -> float:
        """Ranks so often, one launch after the other; processor seconds of this process, all threads."""
        before = time.process_time()
        for _ in range(times):
            self._engine.rank(self._buffers, 1)
        return time.process_time() - before

    def _smallest(self, profiles: tuple[Profile, ...], candidates: int) -> Profile:
        fitting = [one for one in profiles if one.candidates >= candidates and one.history >= self.history]
        if not fitting:
            limits = self.spec.input
            raise ConfigError(
                f"{self.spec.name} takes {limits.max_history} events and {limits.max_candidates} candidates, "
                f"asked for are {self.history} and {candidates}"
            )
        return min(fitting, key=lambda one: (one.users, one.candidates))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._engine.close()
