"""The marks that the orchestrator is held against, each with what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from flame.bench.orchestrator.planning import MARK_US
from flame.bench.orchestrator.rows import OWN_LOAD, SAME_LOAD, Row
from flame.bench.orchestrator.setting import BASELINE

MOST_GROWTH_MIB = 16.0
"""Memory that a run may take besides what is there: caches of allocators settle, a leak at this rate is a leak."""


def marks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for every mark whose numbers were measured: value, bound, and whether it is met."""
    return [
        {
            "mark": name,
            "value": value,
            "bound": f"{'<=' if at_most else '>='} {bound:.4g}",
            "met": value <= bound if at_most else value >= bound,
        }
        for name, value, at_most, bound in (*_comparisons(rows), *_own(rows))
        if value is not None
    ]


_Found = tuple[str, float | None, bool, float]
"""Name, value, whether the bound is an upper one, and the bound."""


def _comparisons(rows: Sequence[Row]) -> Iterator[_Found]:
    """Planning by cost against the other two: capacities, and p99 at one load for both and at each its own."""
    for other, rate, latency in ((BASELINE, 1.6, 0.5), ("largest-first", 1.0, 1.0)):
        capacity = _ratio(rows, "capacity", "", other, "pairs_per_s")
        yield f"throughput over {other}", capacity, False, rate
        same = _ratio(rows, "open loop", SAME_LOAD, other, "ms_p99")
        yield f"p99 over {other}, same load", same, True, latency
        own = _ratio(rows, "open loop", OWN_LOAD, other, "ms_p99")
        yield f"p99 over {other}, each at its share of its own capacity", own, True, latency


def _own(rows: Sequence[Row]) -> Iterator[_Found]:
    """What planning by cost reaches by itself."""
    capacity, overload = _row(rows, "capacity", "cost"), _row(rows, "overload", "cost")
    alone = _row(rows, "engine alone", "").get("pairs_per_s")
    reached = capacity.get("pairs_per_s")
    yield "share of the engine alone", reached / alone if reached and alone else None, False, 0.85
    yield "busy share at saturation", capacity.get("busy_share"), False, 0.92
    yield "padding waste at saturation", capacity.get("padding_waste"), True, 0.08
    again = [row["second_over_first"] for row in rows if row["what"] == "reuse"]
    yield "second request over the first, device time, worst candidate count", max(again, default=None), True, 1 / 3
    yield "overload: goodput over capacity", overload.get("goodput_of_capacity"), False, 0.9
    yield "overload: accepted requests in time", overload.get("accepted_in_time_share"), False, 0.99
    yield "overload: refusal p99, ms", overload.get("refusal_ms_p99"), True, 5.0
    yield "overload: growth of resident memory, MiB", overload.get("resident_growth_mib"), True, MOST_GROWTH_MIB
    yield "overload: growth of device memory, MiB", overload.get("device_growth_mib"), True, MOST_GROWTH_MIB
    yield "planner, us per request", _row(rows, "planner", "cost").get("us_per_request"), True, MARK_US


def _ratio(rows: Sequence[Row], what: str, load: str, other: str, column: str) -> float | None:
    """`column` of planning by cost over that of another policy, in the runs of that kind and load."""
    ours, theirs = (_row(rows, what, policy, load).get(column) for policy in ("cost", other))
    return ours / theirs if ours and theirs else None


def _row(rows: Sequence[Row], what: str, policy: str, load: str = "") -> Row:
    """The first row of that kind, policy and load (any, when it is empty); empty where there is none."""
    return next((row for row in rows if row["what"] == what and row["policy"] == policy and load in row["load"]), {})
