"""The highest open-loop rate that a server holds at a given p99, found in short steps and confirmed by a long one.

A rate is *held* when the 99th percentile of the latency, a failed request counting as infinitely late, is at most the
bound, and the answers came at 95 % of the rate or more, so that a queue which grows slowly is not taken for calm.
Short steps see few requests: the result of the search is where to look, and the run that confirms it is the number.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from flame.bench.load.record import Outcome, Window, latencies_ms

Probe = Callable[[float, float], Awaitable[tuple[list[Outcome], Window]]]
"""Runs an open loop at a rate for some seconds."""

LEAST_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Step:
    """One run of the search: `phase` is "bracket", "bisect" or "confirm"."""

    phase: str
    rate: float
    held: bool
    outcomes: list[Outcome]
    window: Window


def holds(outcomes: list[Outcome], window: Window, p99_ms: float) -> bool:
    """Whether a run held the bound; a run without a single request in its window held nothing."""
    due = [one for one in outcomes if window.start <= one.due < window.end]
    if not due:
        return False
    answered = sum(1 for one in outcomes if one.reply.outcome == "ok" and window.start <= one.done < window.end)
    late = np.percentile(latencies_ms(due), 99, method="higher")
    return bool(late <= p99_ms and answered >= LEAST_SHARE * len(due))


class Search:
    """Brackets, bisects and confirms; `steps` holds every run in order."""

    def __init__(self, probe: Probe, p99_ms: float, step_s: float, confirm_s: float) -> None:
        self._probe = probe
        self._p99_ms = p99_ms
        self._step_s, self._confirm_s = step_s, confirm_s
        self.steps: list[Step] = []

    async def run(self, first: float, resolution: float = 0.05, tries: int = 5) -> Step | None:
        """The confirming step of the highest rate that was held; None when no rate was.

        `first` is where to begin, the rate of a closed loop say. The bisection ends when the bracket is `resolution`
        wide relative to its upper end; a rate that fails its confirmation is lowered by a tenth, `tries` times.
        """
        low, high = await self._bracket(first)
        while low > 0 and high - low > resolution * high:
            middle = (low + high) / 2
            low, high = (middle, high) if await self._held("bisect", middle, self._step_s) else (low, middle)
        for _ in range(tries):
            if low == 0:
                break
            if await self._held("confirm", low, self._confirm_s):
                return self.steps[-1]
            low *= 0.9
        return None

    async def _bracket(self, rate: float) -> tuple[float, float]:
        """A rate that is held and one that is not; (0, rate) when even a hundredth of the first is not held."""
        if await self._held("bracket", rate, self._step_s):
            low = rate
            while await self._held("bracket", 2 * low, self._step_s):
                low *= 2
            return low, 2 * low
        high = rate
        while high > rate / 100:
            if await self._held("bracket", high / 2, self._step_s):
                return high / 2, high
            high /= 2
        return 0.0, high

    async def _held(self, phase: str, rate: float, seconds: float) -> bool:
        outcomes, window = await self._probe(rate, seconds)
        held = holds(outcomes, window, self._p99_ms)
        self.steps.append(Step(phase, rate, held, outcomes, window))
        return held
