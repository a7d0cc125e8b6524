"""Every history twice: what the first request of a user costs the device, and the second, with other candidates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import numpy as np

from flame.bench.distributions import Choice
from flame.bench.orchestrator.traffic import Traffic
from flame.bench.timing import interleaved
from flame.engine.backends.base import Engine
from flame.engine.sampling import random_words
from flame.errors import FlameError
from flame.orchestrator.outcome import Outcome, Scored
from flame.orchestrator.pool import Orchestrator
from flame.records import Features

LEARNING = 60
"""Pairs of requests that are not measured: the orchestrator learns that histories come again."""

PAIRS = 30


def rows(engine: Engine, orchestrator: Orchestrator, traffic: Traffic, seed: int) -> Iterator[dict[str, Any]]:
    """A row for every number of candidates that occurs often: at most five, spread over all."""
    users = itertools.count(1 << 40)
    sizes = sorted(set(traffic.counts))
    for size in sizes[:: -(-len(sizes) // 5)]:
        with closing(Traffic(engine.spec, traffic.history, Choice((size,)), 2, seed)) as same:
            if traffic.pinned:
                same.pin()
            _ask(orchestrator, same, users, LEARNING)
            yield _row(engine, orchestrator, same, _ask(orchestrator, same, users, PAIRS))


def _ask(orchestrator: Orchestrator, traffic: Traffic, users: Iterator[int], pairs: int) -> list[tuple[Scored, Scored]]:
    """One request after the other, each user twice."""
    answers = []
    for user in itertools.islice(users, pairs):
        first, second = (_scored(orchestrator, traffic.features(turn, user)) for turn in (0, 1))
        answers.append((first, second))
    return answers


def _scored(orchestrator: Orchestrator, features: Features) -> Scored:
    ended: Future[Outcome] = Future()
    orchestrator.submit(features, ended.set_result)
    outcome = ended.result()
    if isinstance(outcome, FlameError):
        raise outcome
    return outcome


def _row(
    engine: Engine, orchestrator: Orchestrator, traffic: Traffic, answers: list[tuple[Scored, Scored]]
) -> dict[str, Any]:
    first, second = (np.median(times) for times in zip(*_device_ms(orchestrator, len(answers)), strict=True))
    alone = _alone_ms(engine, traffic)
    return {
        "what": "reuse",
        "policy": "cost",
        "load": f"one at a time, {traffic.counts[0]} candidates",
        "reuse_share": sum(second.reused for _, second in answers) / len(answers),
        "first_device_ms": float(first),
        "second_device_ms": float(second),
        "second_over_first": float(second / first),
        "first_ms_p50": float(np.median([one.compute_us for one, _ in answers])) / 1e3,
        "second_ms_p50": float(np.median([one.compute_us for _, one in answers])) / 1e3,
        **alone,
    }


def _device_ms(orchestrator: Orchestrator, pairs: int) -> list[tuple[float, float]]:
    """Milliseconds of engine calls of the last requests, of whom none shared a launch: each first and its second."""
    recording = orchestrator.timeline.snapshot()
    numbers = [span.number for span in recording.requests[-2 * pairs :]]
    spent = dict.fromkeys(numbers, 0.0)
    for span in recording.launches:
        for number in spent.keys() & span.members:
            spent[number] += 1e3 * (span.scored - span.launched)
    times = list(spent.values())
    return list(zip(times[::2], times[1::2], strict=True))


def _alone_ms(engine: Engine, traffic: Traffic) -> dict[str, float]:
    """Medians of the engine's own launches for one such user, in turns."""
    count = traffic.counts[0]
    fitting = [one for one in engine.profiles if one.candidates >= count and one.history >= traffic.history]
    buffers = engine.buffers(min(fitting))
    generator = np.random.default_rng(0)
    buffers.words[:] = random_words(engine.spec, buffers.layout, [traffic.lengths], [count], generator)
    states = [engine.state(buffers.profile.history)]
    engine.encode(buffers, states)
    calls = {"rank": lambda: engine.rank(buffers, 1), "score": lambda: engine.score(buffers, states)}
    return {f"engine_{kind}_ms": float(np.median(times)) for kind, times in interleaved(calls, PAIRS).items()}
