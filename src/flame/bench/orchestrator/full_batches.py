"""The engine alone on the same work: full launches back to back, no queue, no planning, nothing copied between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from flame.bench.orchestrator.traffic import Traffic
from flame.engine.backends.base import Engine, LaunchBuffers
from flame.engine.sampling import random_words
from flame.engine.spec import Profile


class Batch(NamedTuple):
    """A full launch, and how many candidates are asked for in it."""

    profile: Profile
    pairs: int


def batches(engine: Engine, traffic: Traffic) -> list[Batch]:
    """The requests of `traffic` in full launches: each in the profile that is the cheapest for a user of a full one.

    Requests of the same profile share launches, as many launches as it takes; pairs are the mean of what they ask.
    """
    by_profile: dict[Profile, list[int]] = {}
    for count in traffic.counts:
        by_profile.setdefault(_cheapest(engine, traffic.history, count), []).append(count)
    return [
        Batch(profile, round(profile.users * sum(counts) / len(counts)))
        for profile, counts in by_profile.items()
        for _ in range(max(1, round(len(counts) / profile.users)))
    ]


def pairs_per_s(engine: Engine, traffic: Traffic, executors: int, seconds: float, seed: int) -> float:
    """The rate of `executors` threads that run through all batches again and again, each in an order of its own."""
    work = batches(engine, traffic)
    generator = np.random.default_rng(seed)
    orders = [[work[place] for place in generator.permutation(len(work))] for _ in range(executors)]
    buffers = [_filled(engine, traffic, work, generator) for _ in range(executors)]
    ready = threading.Barrier(executors)
    with ThreadPoolExecutor(executors, "flame-bench-launcher") as threads:
        launchers = [
            threads.submit(_launch, engine, order, own, ready, seconds)
            for order, own in zip(orders, buffers, strict=True)
        ]
        return sum(launcher.result() for launcher in launchers)


def _cheapest(engine: Engine, history: int, count: int) -> Profile:
    fitting = [one for one in engine.profiles if one.candidates >= count and one.history >= history]
    return min(fitting, key=lambda one: engine.costs[one].rank / one.users)


def _filled(
    engine: Engine, traffic: Traffic, work: Sequence[Batch], generator: np.random.Generator
) -> dict[Profile, LaunchBuffers]:
    """Buffers of every profile with full launches in them."""
    filled = {}
    for profile in dict.fromkeys(batch.profile for batch in work):
        buffers = filled[profile] = engine.buffers(profile)
        lengths, counts = [traffic.lengths] * profile.users, [profile.candidates] * profile.users
        buffers.words[:] = random_words(engine.spec, buffers.layout, lengths, counts, generator)
    return filled


def _launch(
    engine: Engine,
    order: Sequence[Batch],
    buffers: dict[Profile, LaunchBuffers],
    ready: threading.Barrier,
    seconds: float,
) -> float:
    """Pairs per second of one thread; its first launches, until all threads have had one, do not count."""
    for profile, own in buffers.items():
        engine.rank(own, profile.users)
    ready.wait()
    pairs, start = 0, time.monotonic()
    while True:
        for batch in order:
            engine.rank(buffers[batch.profile], batch.profile.users)
            pairs += batch.pairs
            taken = time.monotonic() - start
            if taken >= seconds:
                return pairs / taken
