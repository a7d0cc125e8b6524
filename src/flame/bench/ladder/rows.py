"""Rows of the ladder, from the times of all entrants of a case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flame.bench.ladder.cases import Case
from flame.bench.ladder.clock import Samples
from flame.bench.ladder.entrant import Entrant
from flame.bench.ladder.truth import Distance

BASELINE = "flex-graph"
MATRIX = "matrix product"

Row = dict[str, Any]


def refused(case: Case, variant: str, reason: str) -> Row:
    """A variant without times."""
    return _key(case) | {"variant": variant, "reason": reason}


def rows_of(
    case: Case,
    entrants: Sequence[Entrant],
    samples: Samples,
    distances: Mapping[str, Distance],
    matrix_gflop: float,
) -> Iterator[Row]:
    """A row for each entrant; times are in `samples` by its name and, by the wall, by its name with "launch".

    `matrix_gflop` is the work of the product that was timed with them.
    """
    peak = matrix_gflop / float(np.median(samples[MATRIX]))
    medians = {entrant.name: float(np.median(samples[entrant.name])) for entrant in entrants}
    for entrant in entrants:
        times, median = samples[entrant.name], medians[entrant.name]
        answers = entrant.kind != "encode"
        tflops = 1e-9 * case.flops(entrant.part, entrant.kind) / median
        distance = distances.get(entrant.name)
        yield _key(case) | {
            "variant": entrant.variant,
            "part": entrant.part,
            "kind": entrant.kind,
            "ms_median": median,
            "ms_p99": float(np.percentile(times, 99)),
            "ms_min": float(times.min()),
            "ms_launch": _median(samples.get(f"{entrant.name} launch")),
            "pairs_per_s": 1e3 * case.pairs / median if answers else None,
            "users_per_s": 1e3 * case.profile.users / median,
            "tflops": tflops,
            "share_of_peak": tflops / peak,
            "peak_tflops": peak,
            **(_ratios(entrant, entrants, medians) if answers else {}),
            "error": distance.error if distance else None,
            "error_max": distance.error_max if distance else None,
            "build_s": entrant.build_s,
            **({"note": entrant.note} if entrant.note else {}),
        }


def _ratios(entrant: Entrant, entrants: Sequence[Entrant], medians: Mapping[str, float]) -> Row:
    """How often this entrant runs in the time of others; a second scoring is held against whole launches."""
    own = medians[entrant.name]
    plain = [medians[one.name] for one in entrants if not one.ours and one.part == entrant.part]
    others = {
        "ratio": medians.get(f"{BASELINE} {entrant.part} rank"),
        "ratio_to_stack": medians.get(f"{BASELINE} stack rank"),
        "ratio_to_best": min(plain, default=None),
    }
    return {name: other / own if other else None for name, other in others.items()}


def _median(times: Any) -> float | None:
    return None if times is None else float(np.median(times))


def _key(case: Case) -> Row:
    users, history, candidates = case.profile
    return {
        "scenario": case.scenario,
        "users": users,
        "history": history,
        "candidates": candidates,
        "pairs": case.pairs,
    }
