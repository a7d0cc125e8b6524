"""What happened to every request of a run, and the numbers drawn from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.bench.load.client import OK, Reply

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request; times in seconds after the start of the run. `due` is when it was meant to be sent."""

    due: float
    sent: float
    done: float
    candidates: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a run that is measured: requests due in `[start, end)`, seconds after the start of the run."""

    start: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.start


def latencies_ms(outcomes: Iterable[Outcome]) -> Seconds:
    """Milliseconds from the intended sending to the answer; infinite for a request that failed."""
    values = [1e3 * (one.done - one.due) if one.reply.outcome == OK else np.inf for one in outcomes]
    return np.array(values, np.float64)


def summarise(outcomes: Iterable[Outcome], window: Window, deadline_ms: float | None) -> dict[str, Any]:
    """The row of a run: latencies of good answers, rates inside the window, errors by kind, the server's stages.

    Latency percentiles are over answered requests; failures are counted beside them and spoil the goodput, which
    counts answers within the deadline of their intended sending. Rates count what was answered inside the window, so
    an answer that arrives when the run is over adds nothing.
    """
    outcomes = list(outcomes)
    due = [one for one in outcomes if window.start <= one.due < window.end]
    answered = [one for one in outcomes if one.reply.outcome == OK and window.start <= one.done < window.end]
    latencies = latencies_ms(due)
    good = latencies <= (np.inf if deadline_ms is None else deadline_ms)
    good &= np.isfinite(latencies)
    return {
        "seconds": window.length,
        "requests": len(due),
        "offered_rate": len(due) / window.length,
        "achieved_rate": len(answered) / window.length,
        "pairs_per_s": sum(one.candidates for one in answered) / window.length,
        **percentiles(latencies[np.isfinite(latencies)]),
        "deadline_ms": deadline_ms,
        "goodput": int(good.sum()) / window.length,
        "goodput_pairs_per_s": sum(one.candidates for one, is_good in zip(due, good, strict=True) if is_good)
        / window.length,
        "goodput_share": float(good.mean()) if len(due) else None,
        "failed": int(np.isinf(latencies).sum()),
        "errors": dict(Counter(one.reply.outcome for one in due if one.reply.outcome != OK).most_common()),
        "send_lag_ms_p99": _percentile(np.array([1e3 * (one.sent - one.due) for one in due]), 99),
        "stages_us": stage_times(one.reply.stages for one in due if one.reply.outcome == OK),
    }


def percentiles(milliseconds: Seconds) -> dict[str, float | None]:
    """The latency columns that every report has."""
    return {
        "ms_p50": _percentile(milliseconds, 50),
        "ms_p99": _percentile(milliseconds, 99),
        "ms_p999": _percentile(milliseconds, 99.9),
        "ms_mean": float(milliseconds.mean()) if len(milliseconds) else None,
        "ms_max": float(milliseconds.max()) if len(milliseconds) else None,
    }


def stage_times(stages: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Median and 99th percentile of each stage the server reported, in microseconds."""
    values: dict[str, list[float]] = {}
    for times in stages:
        for name, microseconds in times.items():
            values.setdefault(name, []).append(microseconds)
    return {
        name: {"p50": _percentile(np.array(times), 50), "p99": _percentile(np.array(times), 99)}
        for name, times in values.items()
    }


def _percentile(values: Seconds, share: float) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None
