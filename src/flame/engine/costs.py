"""What a launch of a profile costs, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from flame.engine.backends.base import Engine
from flame.engine.sampling import random_words
from flame.engine.spec import Profile, ProfileCost

_MIN_ROUNDS, _MAX_ROUNDS = 3, 25
_SECONDS = 0.25
_PASSES = 3


def measure_cost(engine: Engine, profile: Profile) -> ProfileCost:
    """Medians of full launches of `profile`, every user with all events and candidates; one launch before counts not.

    They are medians of up to three passes over all kinds: what disturbs some milliseconds disturbs one pass, and a plan
    is made by differences of a few percent. Takes up to about a quarter of a second for each kind of launch, or three
    launches where those take longer.
    """
    spec = engine.spec
    buffers = engine.buffers(profile)
    lengths = [[sequence.capacity(profile.history) for sequence in spec.input.sequences]] * profile.users
    counts = [profile.candidates] * profile.users
    buffers.words[:] = random_words(spec, buffers.layout, lengths, counts, np.random.default_rng(0))
    states = [engine.state(profile.history) for _ in range(profile.users)]
    launches: list[Callable[[], None]] = [
        lambda: engine.rank(buffers, profile.users),
        lambda: engine.encode(buffers, states),
        lambda: engine.score(buffers, states),
    ]
    passes: list[list[float]] = []
    began = time.perf_counter()
    while not passes or (len(passes) < _PASSES and time.perf_counter() - began < _SECONDS):
        passes.append([_median_ms(launch) for launch in launches])
    return ProfileCost(*(statistics.median(found) for found in zip(*passes, strict=True)))


def _median_ms(launch: Callable[[], None]) -> float:
    launch()
    seconds: list[float] = []
    while len(seconds) < _MIN_ROUNDS or (len(seconds) < _MAX_ROUNDS and sum(seconds) < _SECONDS):
        start = time.perf_counter()
        launch()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)
