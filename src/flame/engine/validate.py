"""Is this engine right? Random requests through it and through the oracle, compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.random import Generator

from flame.engine.agreement import compare_task, largest_difference, spread
from flame.engine.backends.base import Engine
from flame.engine.isolation import Difference, Rearrangements
from flame.engine.probe import Packed, Probe
from flame.engine.sampling import random_lengths, random_words
from flame.engine.spec import ModelSpec, Profile
from flame.engine.validation_report import IsolationResult, Tolerance, ValidationReport
from flame.errors import EngineError
from flame.records import Scores

TOLERANCES = {
    "fp32": Tolerance(max_relative=1e-3, rms_relative=1e-4, kendall=0.998, top_overlap=0.98, isolation=1e-4),
    "fp16": Tolerance(max_relative=1.1, rms_relative=2.6e-2, kendall=0.987, top_overlap=0.93, isolation=1e-2),
    "bf16": Tolerance(max_relative=6.5, rms_relative=1.8e-1, kendall=0.88, top_overlap=0.85, isolation=5e-2),
}
"""Twice what rounding alone cost the worst of 57 runs over seven models; docs/precision.md says how."""

BITWISE = frozenset({"compiled", "fused"})
"""Backends that promise candidate isolation bit for bit: of them no difference at all is tolerated."""


class _Case(NamedTuple):
    """One random launch, what both engines said of the candidates compared, by user, and its rearrangements."""

    packed: Packed
    oracle: list[Scores]
    engine: list[Scores]
    differences: list[Difference]


def validate(
    engine: Engine,
    oracle: Engine,
    *,
    requests: int = 32,
    seed: int = 0,
    profiles: Sequence[Profile] | None = None,
    most_users: int | None = None,
    most_compared: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ValidationReport:
    """Compares `engine` with `oracle` (an `EagerEngine` of the same package) on at least `requests` random requests.

    Runs `profiles` (all of the engine's by default) in turn, each at least twice: full, then with odd sizes: empty
    histories, one event, full; one candidate up to all. No launch has more than `most_users`, and the oracle scores at
    most `most_compared` candidates of a request, drawn from all of them. `progress` is called with requests done and
    wanted after each launch. Equal seeds give equal requests. Raises what the engines raise, and `EngineError` for a
    precision without a stated tolerance; a wrong engine is told by the report's `passed`.
    """
    allowed = tolerance(engine)
    rng = np.random.default_rng(seed)
    probe, truth = Probe(engine, profiles), Probe(oracle)
    cases: list[_Case] = []
    done = 0
    while done < requests or len(cases) < 2 * len(probe.profiles):
        profile, packed = _request(probe, len(cases), most_users, rng)
        cases.append(_run(probe, truth, profile, packed, most_compared, rng))
        done += cases[-1].packed.users
        if progress:
            progress(min(done, requests), requests)
    return _report(probe, oracle, cases, allowed, seed)


def tolerance(engine: Engine) -> Tolerance:
    """What `engine` is held to. Raises `EngineError` for a precision without a stated tolerance."""
    if engine.precision not in TOLERANCES:
        raise EngineError(
            f"no tolerance is stated for precision {engine.precision!r}, only for {', '.join(TOLERANCES)}"
        )
    stated = TOLERANCES[engine.precision]
    return msgspec.structs.replace(stated, isolation=0.0) if engine.backend in BITWISE else stated


def _request(probe: Probe, index: int, most_users: int | None, rng: Generator) -> tuple[Profile, Packed]:
    """The next random launch; profiles take turns."""
    turn, which = divmod(index, len(probe.profiles))
    profile = probe.profiles[which]
    users = min(profile.users, most_users or profile.users)
    return profile, _random_packed(probe.engine.spec, profile, users, turn, rng)


def _run(
    probe: Probe, truth: Probe, profile: Profile, packed: Packed, most_compared: int | None, rng: Generator
) -> _Case:
    compared = [_some(count, most_compared or count, rng) for count in packed.counts]
    expected = truth.rank_alone(profile.history, packed, compared)
    scores = probe.rank(profile, packed)
    found = [own[chosen] for own, chosen in zip(scores, compared, strict=True)]
    again = Rearrangements(probe, profile, packed, scores, rng)
    return _Case(packed, expected, found, list(again.differences()))


def _some(count: int, most: int, rng: Generator) -> list[int]:
    """Which candidates of a request are compared, in their order."""
    return sorted(rng.choice(count, min(count, most), replace=False).tolist())


def _random_packed(spec: ModelSpec, profile: Profile, users: int, turn: int, rng: Generator) -> Packed:
    """The first turn of a profile fills the slots of `users`; later ones use some of them."""
    layout = spec.layout(profile)
    users = users if turn == 0 else int(rng.integers(1, users + 1))
    if turn == 0:
        full = tuple(sequence.capacity(profile.history) for sequence in spec.input.sequences)
        lengths, counts = [full] * users, [profile.candidates] * users
    else:
        lengths = [random_lengths(spec, profile.history, rng) for _ in range(users)]
        counts = [_random_count(profile.candidates, rng) for _ in range(users)]
    return Packed(layout, random_words(spec, layout, lengths, counts, rng), users)


def _random_count(most: int, rng: Generator) -> int:
    return (1, most, int(rng.integers(1, most + 1)))[int(rng.integers(3))]


def _report(probe: Probe, oracle: Engine, cases: list[_Case], allowed: Tolerance, seed: int) -> ValidationReport:
    engine = probe.engine
    truth = [scores for case in cases for scores in case.oracle]
    found = [scores for case in cases for scores in case.engine]
    tasks = tuple(
        compare_task(task.name, [scores[:, index] for scores in truth], [scores[:, index] for scores in found])
        for index, task in enumerate(engine.spec.tasks)
    )
    return ValidationReport(
        model=engine.spec.name,
        version=engine.spec.version,
        backend=engine.backend,
        oracle=oracle.backend,
        device=engine.device,
        precision=engine.precision,
        seed=seed,
        profiles=tuple(str(profile) for profile in probe.profiles),
        requests=len(truth),
        pairs=sum(len(scores) for scores in truth),
        tolerance=allowed,
        tasks=tasks,
        isolation=_isolation(cases, truth),
    )


def _isolation(cases: list[_Case], truth: list[Scores]) -> tuple[IsolationResult, ...]:
    """The worst difference of every check, in units of each task's standard deviation."""
    everything = np.concatenate(truth).astype(np.float64)
    scale = np.array([spread(column) for column in everything.T])
    found: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        for difference in case.differences:
            found[difference.check].append(largest_difference(difference.expected, difference.found, scale))
    return tuple(IsolationResult(check, len(worst), max(worst)) for check, worst in found.items())
