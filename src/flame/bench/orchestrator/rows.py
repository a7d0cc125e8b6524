"""The rows of runs: the columns that all have, and what some kinds of run have besides."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flame.bench.load.record import summarise
from flame.bench.orchestrator.runs import Run

Row = Mapping[str, Any]

COLUMNS = (
    "what",
    "policy",
    "load",
    "pairs_per_s",
    "ms_p50",
    "ms_p99",
    "ms_p999",
    "goodput",
    "busy_share",
    "padding_waste",
    "reuse_share",
)

SAME_LOAD, OWN_LOAD = "'s capacity", "its own capacity"
"""What the loads of open loops end with: a share of one policy's capacity for all, and of each policy's own."""

LATE_SHARE = 0.1
"""A sender whose lag is more than that share of the latency, both at their 99th percentile, was late."""

_MIB = 2**20


def of_run(what: str, policy: str, load: str, run: Run, deadline_ms: float) -> dict[str, Any]:
    """The row of a run; `goodput` is answers per second within the deadline, counted from when they were due."""
    summary = summarise(run.record.outcomes(), run.window, deadline_ms)
    seen = run.occupancy
    summary |= {
        "what": what,
        "policy": policy,
        "load": load,
        "busy_share": seen.busy_share,
        "padding_waste": seen.padding_waste,
        "reuse_share": run.record.reuse_share(run.window),
        "running": seen.running,
        "users_per_launch": seen.users,
        "launches_per_s": seen.launches_per_s,
    }
    lag, late = summary["send_lag_ms_p99"], summary["ms_p99"]
    summary["sender_late"] = bool(lag and late and lag > LATE_SHARE * late)
    return {name: summary[name] for name in COLUMNS} | summary


def of_overload(load: str, run: Run, deadline_ms: float, capacity: Row) -> dict[str, Any]:
    """The row of a run that asks for more than there is; shares of the capacity are the lower of requests and pairs."""
    row = of_run("overload", "cost", load, run, deadline_ms)
    refusals = run.record.refusals_ms(run.window)
    return row | {
        "goodput_of_capacity": min(
            row["goodput"] / capacity["achieved_rate"], row["goodput_pairs_per_s"] / capacity["pairs_per_s"]
        ),
        "accepted_in_time_share": run.record.in_time_share(run.window, deadline_ms),
        "refused": len(refusals),
        "refusal_ms_p99": float(np.percentile(refusals, 99)) if len(refusals) else None,
        "refusal_ms_max": float(refusals.max()) if len(refusals) else None,
        "resident_growth_mib": (run.after.resident - run.before.resident) / _MIB,
        "device_growth_mib": (run.after.device - run.before.device) / _MIB,
    }


def of_overhead(policy: str, load: str, run: Run, deadline_ms: float) -> dict[str, Any]:
    """The row of a run whose engine does nothing: processor time of all threads per request, the sender's too."""
    row = of_run("overhead", policy, load, run, deadline_ms)
    spent = run.after.process_s - run.before.process_s
    answered = row["achieved_rate"] * run.window.length
    return row | {"us_per_request": 1e6 * spent / answered if answered else None}


def median(rounds: Sequence[Row]) -> dict[str, Any]:
    """One row of those of all rounds: medians of the numbers, and `pairs_per_s_spread`, largest less smallest over it.

    A thing that is true of one round is true; texts are the same in all.
    """
    row = _medians(rounds)
    rates = [one["pairs_per_s"] for one in rounds]
    return row | {"pairs_per_s_spread": (max(rates) - min(rates)) / row["pairs_per_s"] if row["pairs_per_s"] else None}


def _medians(rounds: Sequence[Row]) -> dict[str, Any]:
    names = dict.fromkeys(name for one in rounds for name in one)
    return {name: _median([one[name] for one in rounds if one.get(name) is not None]) for name in names}


def _median(values: Sequence[Any]) -> Any:
    if not values or isinstance(values[0], str):
        return values[0] if values else None
    if isinstance(values[0], bool):
        return any(values)
    return _medians(values) if isinstance(values[0], Mapping) else statistics.median(values)
