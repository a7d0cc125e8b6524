"""`flame bench engine`: the model alone, every backend on the same input in the same minutes.

Method. For each scenario and number of users one packed input is drawn: full histories, as many candidates as the
scenario has. Every variant is built for that one profile and first compared with the oracle; one that fails gets a row
with the reason and no times. The rest run in interleaved rounds, together with a large matrix product of PyTorch on
the same threads: `share_of_peak` is the rate of a variant on the *needed* work (`flame.engine.flops`: no masked pairs,
candidates alone in the last layer) over the rate of that product, median over median.

Kinds: `rank` is a whole launch; `encode` reduces the history; `score` scores candidates against a history that is
encoded already, which is what a second scoring of the same history costs. `speedup` compares with the `rank` of eager,
what the same answer costs without any of this; `encode` gives no answer and has none.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from flame.bench.progress import Show
from flame.bench.timing import interleaved
from flame.bench.workloads import SCENARIOS
from flame.config import Config
from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.backends.registry import NAMES
from flame.engine.build import build
from flame.engine.flops import needed_encode_flops, needed_flops, needed_score_flops
from flame.engine.package import ModelPackage, load
from flame.engine.sampling import random_words
from flame.engine.spec import Profile
from flame.engine.validate import validate
from flame.errors import ConfigError, EngineError
from flame.layout import Words
from flame.records import Scores

ORACLE = "eager"
MATRIX = "matrix product"
MATRIX_SIZE = 2048
PRESETS = {"base": "preset:flame-base", "long": "preset:flame-long"}


@dataclass(frozen=True, slots=True)
class EngineBench:
    """What to measure. `threads` 0 takes all cores of this process."""

    scenarios: Sequence[str] = ("base", "long")
    users: Sequence[int] = (1,)
    variants: Sequence[str] = ("eager", "compiled")
    rounds: int = 30
    threads: int = 0
    validations: int = 4
    seed: int = 0


@dataclass(slots=True)
class Variant:
    """A built engine with the measured input in its buffers and the states of the histories encoded."""

    name: str
    engine: Engine
    buffers: LaunchBuffers
    states: Sequence[HistoryState]
    build_s: float

    def calls(self, users: int) -> dict[str, Callable[[], None]]:
        """The three launches."""
        return {
            "rank": lambda: self.engine.rank(self.buffers, users),
            "encode": lambda: self.engine.encode(self.buffers, self.states),
            "score": lambda: self.engine.score(self.buffers, self.states),
        }


def run(bench: EngineBench, config: Config, threads: int, show: Show) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of the run. Raises `ConfigError` for an unknown name and what the oracle's build raises."""
    _check_names("scenario", bench.scenarios, PRESETS)
    _check_names("variant", bench.variants, [name for name in NAMES if name != "auto"])
    cases = [(scenario, users) for scenario in bench.scenarios for users in bench.users]
    rows: list[dict[str, Any]] = []
    for scenario, users in cases:
        with tempfile.TemporaryDirectory(prefix="flame-bench-") as folder:
            rows += _Case(bench, config, scenario, users, threads, Path(folder), show).rows()
    return rows, {"threads": threads, "rounds": bench.rounds, "seed": bench.seed, "matrix_size": MATRIX_SIZE}


def _check_names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"there is no {what} {name!r} here; there are {', '.join(known)}")


class _Case:
    """One scenario and number of users."""

    def __init__(
        self, bench: EngineBench, config: Config, scenario: str, users: int, threads: int, folder: Path, show: Show
    ) -> None:
        shape = SCENARIOS[scenario]
        self._bench, self._config, self._threads = bench, config, threads
        self._scenario, self._folder, self._show = scenario, folder, show
        self._package: ModelPackage = load(PRESETS[scenario])
        self._profile = Profile(users, shape.history, max(shape.candidates.values))
        self._words = self._draw()
        self._failed: list[dict[str, Any]] = []

    def rows(self) -> list[dict[str, Any]]:
        oracle = self._built(ORACLE)
        variants = [variant for name in self._bench.variants if (variant := self._accepted(name, oracle)) is not None]
        truth = _scores(oracle, "rank", self._profile.users)
        errors = {
            (variant.name, kind): float(np.abs(_scores(variant, kind, self._profile.users) - truth).max())
            for variant in variants
            for kind in ("rank", "score")
        }
        samples = self._measure(variants)
        rows = [row for variant in variants for row in self._rows_of(variant, samples, errors)]
        for variant in {id(variant): variant for variant in [oracle, *variants]}.values():
            variant.engine.close()
        return rows + self._failed

    def _draw(self) -> Words:
        """Full histories and all candidates, for every user of the profile."""
        spec, profile = self._package.spec, self._profile
        lengths = [tuple(one.capacity(profile.history) for one in spec.input.sequences)] * profile.users
        counts = [profile.candidates] * profile.users
        return random_words(spec, spec.layout(profile), lengths, counts, np.random.default_rng(self._bench.seed))

    def _built(self, name: str) -> Variant:
        """A variant, built from nothing so that `build_s` means something."""
        settings = replace(self._config.engine, backend=name, artifact=str(self._folder / name))
        start = time.perf_counter()
        engine = build(self._package, settings, [self._profile], threads=self._threads)
        took = time.perf_counter() - start
        buffers = engine.buffers(self._profile)
        buffers.words[: len(self._words)] = self._words
        states = [engine.state(self._profile.history) for _ in range(self._profile.users)]
        engine.encode(buffers, states)
        return Variant(name, engine, buffers, states, took)

    def _accepted(self, name: str, oracle: Variant) -> Variant | None:
        """A variant that gives the oracle's scores; any other leaves a row with the reason."""
        if name == ORACLE:
            return oracle
        self._show(f"{self._scenario}: building and validating {name}", 0, 1)
        try:
            variant = self._built(name)
            report = validate(variant.engine, oracle.engine, requests=self._bench.validations, seed=self._bench.seed)
        except EngineError as error:
            self._failed.append(self._key(name) | {"reason": str(error)})
            return None
        self._show(f"{self._scenario}: building and validating {name}", 1, 1)
        if not report.passed:
            variant.engine.close()
            self._failed.append(self._key(name) | {"reason": f"validation failed: {'; '.join(report.failures)}"})
            return None
        return variant

    def _measure(self, variants: Sequence[Variant]) -> dict[str, NDArray[np.float64]]:
        """Milliseconds of every call in interleaved rounds, by "variant kind", and of the matrix product."""
        torch.set_num_threads(self._threads)
        calls: dict[str, Callable[[], object]] = {MATRIX: _matrix_product()}
        for variant in variants:
            for kind, call in variant.calls(self._profile.users).items():
                calls[f"{variant.name} {kind}"] = call
        rounds = iter(range(1, self._bench.rounds + 3))
        text = f"{self._scenario}, {self._profile.users} users: measuring"
        return interleaved(
            calls, self._bench.rounds, warm_up=2, tick=lambda: self._show(text, next(rounds), self._bench.rounds + 2)
        )

    def _rows_of(
        self, variant: Variant, samples: dict[str, NDArray[np.float64]], errors: dict[tuple[str, str], float]
    ) -> Iterator[dict[str, Any]]:
        users, history, candidates = self._profile
        spec = self._package.spec
        flops = {
            "rank": needed_flops(spec, history, candidates),
            "encode": needed_encode_flops(spec, history),
            "score": needed_score_flops(spec, history, candidates),
        }
        peak = 2e-6 * MATRIX_SIZE**3 / float(np.median(samples[MATRIX]))
        eager = samples.get(f"{ORACLE} rank")
        for kind, work in flops.items():
            times = samples[f"{variant.name} {kind}"]
            median = float(np.median(times))
            gflops = 1e-6 * users * work / median
            answers = kind != "encode"
            yield self._key(variant.name) | {
                "kind": kind,
                "ms_median": median,
                "ms_p99": float(np.percentile(times, 99)),
                "ms_min": float(times.min()),
                "pairs_per_s": 1e3 * users * candidates / median if answers else None,
                "gflops": gflops,
                "share_of_peak": gflops / peak,
                "matrix_gflops": peak,
                "speedup": float(np.median(eager)) / median if answers and eager is not None else None,
                "error": errors.get((variant.name, kind)),
                "build_s": variant.build_s,
            }

    def _key(self, variant: str) -> dict[str, Any]:
        return {"scenario": self._scenario, "users": self._profile.users, "variant": variant}


def _scores(variant: Variant, kind: str, users: int) -> Scores:
    """Scores of one launch `[users, candidates, tasks]`, into a buffer that betrays what was not written."""
    variant.buffers.scores[:] = np.nan
    variant.calls(users)[kind]()
    return variant.buffers.scores.copy()


def _matrix_product() -> Callable[[], object]:
    size = MATRIX_SIZE
    left, right, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return lambda: torch.mm(left, right, out=out)
