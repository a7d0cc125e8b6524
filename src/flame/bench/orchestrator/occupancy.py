"""How busy the executors were and how full their launches, from the spans of a timeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flame.orchestrator.timeline import LaunchSpan

Intervals = NDArray[np.float64]
"""Points of time `[n, 2]`: begin and end."""


class Occupancy(NamedTuple):
    """Of a stretch of time; None where nothing was launched in it.

    `busy_share` of it at least one engine call ran, on the mean of the devices; `running` ran on average. Of the
    candidate slots of all launches the share `padding_waste` held none. `users` is the mean of slots that were used.
    """

    busy_share: float | None
    running: float | None
    padding_waste: float | None
    users: float | None
    launches_per_s: float


def occupancy(spans: Sequence[LaunchSpan], start: float, end: float) -> Occupancy:
    """Of the launches that ended in `[start, end)`, and the parts of all engine calls that lie in it."""
    ended = [span for span in spans if start <= span.ended < end]
    if not ended:
        return Occupancy(None, None, None, None, 0.0)
    devices = sorted({span.device for span in spans})
    busy = [union(calls(span for span in spans if span.device == device), start, end) for device in devices]
    return Occupancy(
        busy_share=sum(busy) / len(busy) / (end - start),
        running=total(calls(spans), start, end) / (end - start),
        padding_waste=padding_waste(ended),
        users=sum(span.requests for span in ended) / len(ended),
        launches_per_s=len(ended) / (end - start),
    )


def calls(spans: Iterable[LaunchSpan]) -> Intervals:
    """When the engine ran them: without filling before and reading after."""
    return np.array([(span.launched, span.scored) for span in spans], np.float64).reshape(-1, 2)


def total(intervals: Intervals, start: float, end: float) -> float:
    """Seconds of all intervals together in `[start, end)`; where they overlap, each counts."""
    return float(np.diff(np.clip(intervals, start, end), axis=1).sum())


def union(intervals: Intervals, start: float, end: float) -> float:
    """Seconds of `[start, end)` that lie in at least one interval."""
    clipped = np.clip(intervals, start, end)
    begins, ends = clipped[np.argsort(clipped[:, 0])].T
    if not len(begins):
        return 0.0
    before = np.concatenate([[start], np.maximum.accumulate(ends)[:-1]])
    return float(np.maximum(ends - np.maximum(begins, before), 0.0).sum())


def padding_waste(spans: Iterable[LaunchSpan]) -> float | None:
    """The share of candidate slots that held no candidate; None where there were no slots."""
    slots = candidates = 0
    for span in spans:
        slots += span.slots
        candidates += span.candidates
    return 1 - candidates / slots if slots else None
