"""`flame bench engine`: the model alone, every backend on the same input in the same minutes.

Method. For each scenario and number of users one packed input is drawn: full histories, as many candidates as the
scenario has. Every variant is built for that one profile and first compared with the oracle; one that fails gets a row
with the reason and no times. The rest run in interleaved rounds, together with a large matrix product of PyTorch on
the same threads, and with an allocator that keeps what is freed (`flame.bench.allocator` says why). `share_of_peak` is
the rate of a variant on the *needed* work (`flame.engine.flops`: no masked pairs, candidates alone in the last layer)
over the rate of that product, median over median.

Kinds: `rank` is a whole launch; `encode` reduces the history; `score` scores candidates against a history that is
encoded already, which is what a second scoring of the same history costs. `speedup` compares with the `rank` of eager,
what the same answer costs without any of this; `encode` gives no answer and has none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flame.bench.allocator import keep_freed_memory
from flame.bench.progress import Show
from flame.bench.timing import interleaved
from flame.bench.variants import PRESETS, Case, Variant
from flame.config import Config
from flame.engine.backends.registry import NAMES
from flame.engine.flops import needed_encode_flops, needed_flops, needed_score_flops
from flame.errors import ConfigError, EngineError

ORACLE = "eager"
MATRIX = "matrix product"
MATRIX_SIZE = 2048
WARM_UP = 2

Samples = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class EngineBench:
    """What to measure; `validations` is the number of random requests that each variant is checked with."""

    scenarios: Sequence[str] = ("base", "long")
    users: Sequence[int] = (1,)
    variants: Sequence[str] = ("eager", "compiled")
    rounds: int = 30
    validations: int = 4
    seed: int = 0


def run(bench: EngineBench, config: Config, threads: int, show: Show) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of the run. Raises `ConfigError` for an unknown name and what the oracle's build raises."""
    _check_names("scenario", bench.scenarios, PRESETS)
    _check_names("variant", bench.variants, [name for name in NAMES if name != "auto"])
    kept = keep_freed_memory()
    rows: list[dict[str, Any]] = []
    for scenario in bench.scenarios:
        for users in bench.users:
            with tempfile.TemporaryDirectory(prefix="flame-bench-") as folder:
                case = Case.draw(scenario, users, bench.seed)
                rows += _Run(bench, config, case, threads, Path(folder), show).rows()
    facts = {"threads": threads, "rounds": bench.rounds, "seed": bench.seed, "matrix_size": MATRIX_SIZE}
    return rows, facts | {"freed_memory_kept": kept}


def _check_names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"there is no {what} {name!r} here; there are {', '.join(known)}")


class _Run:
    """All variants on one case."""

    def __init__(self, bench: EngineBench, config: Config, case: Case, threads: int, folder: Path, show: Show) -> None:
        self._bench, self._settings, self._case = bench, config.engine, case
        self._threads, self._folder, self._show = threads, folder, show
        self._refused: list[dict[str, Any]] = []

    def rows(self) -> list[dict[str, Any]]:
        oracle = self._build(ORACLE)
        variants = [variant for name in self._bench.variants if (variant := self._accepted(name, oracle)) is not None]
        truth = oracle.scores("rank")
        errors = {
            (variant.name, kind): float(np.abs(variant.scores(kind) - truth).max())
            for variant in variants
            for kind in ("rank", "score")
        }
        samples = self._measure(variants)
        rows = [row for variant in variants for row in self._rows_of(variant, samples, errors)]
        for variant in {one.name: one for one in [oracle, *variants]}.values():
            variant.engine.close()
        return rows + self._refused

    def _build(self, name: str) -> Variant:
        return Variant.build(self._case, name, self._settings, self._threads, self._folder)

    def _accepted(self, name: str, oracle: Variant) -> Variant | None:
        """A variant that gives the oracle's scores; any other leaves a row with the reason."""
        if name == ORACLE:
            return oracle
        text = f"{self._case.scenario}: building and validating {name}"
        self._show(text, 0, 1)
        try:
            variant = self._build(name)
        except EngineError as error:
            self._refused.append(self._key(name) | {"reason": str(error)})
            return None
        reason = variant.objection(oracle, self._bench.validations, self._bench.seed)
        self._show(text, 1, 1)
        if reason:
            variant.engine.close()
            self._refused.append(self._key(name) | {"reason": reason})
            return None
        return variant

    def _measure(self, variants: Sequence[Variant]) -> Samples:
        """Milliseconds of every call in interleaved rounds, by "variant kind", and of the matrix product."""
        torch.set_num_threads(self._threads)
        calls: dict[str, Callable[[], object]] = {MATRIX: _matrix_product()}
        for variant in variants:
            calls |= {f"{variant.name} {kind}": call for kind, call in variant.calls.items()}
        total = self._bench.rounds + WARM_UP
        rounds = iter(range(1, total + 1))
        text = f"{self._case.scenario}, {self._case.profile.users} users: measuring"
        return interleaved(
            calls, self._bench.rounds, warm_up=WARM_UP, tick=lambda: self._show(text, next(rounds), total)
        )

    def _rows_of(
        self, variant: Variant, samples: Samples, errors: Mapping[tuple[str, str], float]
    ) -> Iterator[dict[str, Any]]:
        users, history, candidates = self._case.profile
        spec = self._case.package.spec
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
        return {"scenario": self._case.scenario, "users": self._case.profile.users, "variant": variant}


def _matrix_product() -> Callable[[], object]:
    size = MATRIX_SIZE
    left, right, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return lambda: torch.mm(left, right, out=out)
