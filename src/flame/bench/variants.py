"""The engines that a benchmark compares: built for one profile, each with the same input in its buffers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from flame.bench.workloads import SCENARIOS
from flame.config import EngineConfig
from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.build import build
from flame.engine.package import ModelPackage, load
from flame.engine.sampling import random_words
from flame.engine.spec import Profile
from flame.engine.validate import validate
from flame.errors import EngineError
from flame.layout import Words
from flame.records import Scores

PRESETS = {"base": "preset:flame-base", "long": "preset:flame-long"}


@dataclass(frozen=True, slots=True)
class Case:
    """A model, the profile it is measured in, and a packed input that fills it."""

    scenario: str
    package: ModelPackage
    profile: Profile
    words: Words

    @classmethod
    def draw(cls, scenario: str, users: int, seed: int) -> Case:
        """The case of a scenario: full histories and all its candidates, for every user."""
        shape, package = SCENARIOS[scenario], load(PRESETS[scenario])
        profile = Profile(users, shape.history, max(shape.candidates.values))
        spec = package.spec
        lengths = [tuple(one.capacity(profile.history) for one in spec.input.sequences)] * users
        counts = [profile.candidates] * users
        words = random_words(spec, spec.layout(profile), lengths, counts, np.random.default_rng(seed))
        return cls(scenario, package, profile, words)


@dataclass(frozen=True, slots=True)
class Variant:
    """A built engine with the input of a case in its buffers and the states of its histories encoded."""

    name: str
    engine: Engine
    buffers: LaunchBuffers
    states: Sequence[HistoryState]
    build_s: float

    @classmethod
    def build(cls, case: Case, name: str, settings: EngineConfig, threads: int, folder: Path) -> Variant:
        """Builds a backend from nothing, into `folder`, so that `build_s` means something. Raises `EngineError`."""
        chosen = replace(settings, backend=name, artifact=str(folder / name), validate="off")
        start = time.perf_counter()
        engine = build(case.package, chosen, [case.profile], threads=threads)
        took = time.perf_counter() - start
        buffers = engine.buffers(case.profile)
        buffers.words[: len(case.words)] = case.words
        states = [engine.state(case.profile.history) for _ in range(case.profile.users)]
        engine.encode(buffers, states)
        return cls(name, engine, buffers, states, took)

    @property
    def calls(self) -> Mapping[str, Callable[[], None]]:
        """The three launches by kind."""
        users = self.buffers.profile.users
        return {
            "rank": lambda: self.engine.rank(self.buffers, users),
            "encode": lambda: self.engine.encode(self.buffers, self.states),
            "score": lambda: self.engine.score(self.buffers, self.states),
        }

    def scores(self, kind: str) -> Scores:
        """Scores of one launch `[users, candidates, tasks]`, into a buffer that betrays what was not written."""
        self.buffers.scores[:] = np.nan
        self.calls[kind]()
        return self.buffers.scores.copy()

    def objection(self, oracle: Variant, requests: int, seed: int) -> str:
        """Why this engine may not be timed: what of its scores is not the oracle's. Empty where nothing is."""
        try:
            report = validate(self.engine, oracle.engine, requests=requests, seed=seed)
        except EngineError as error:
            return str(error)
        return "" if report.passed else f"validation failed: {'; '.join(report.failures)}"
