"""Times of all entrants of a case, in interleaved rounds beside a large matrix product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from flame.bench.ladder.cases import Case
from flame.bench.ladder.clock import Clock, Run, interleaved, wall_ms
from flame.bench.ladder.entrant import Entrant
from flame.bench.ladder.rows import MATRIX, Row, rows_of
from flame.bench.ladder.truth import Distance
from flame.bench.progress import Show

MATRIX_SIZE = 8192


class Recorded(NamedTuple):
    """An entrant as it will be timed."""

    entrant: Entrant
    replay: Run
    distance: Distance | None


def measured(case: Case, taking: Sequence[Recorded], clock: Clock, rounds: int, show: Show) -> list[Row]:
    """Rows of everything that takes part."""
    calls = {MATRIX: _on_device(clock, _matrix_product(case.device), None)}
    for one in taking:
        calls[one.entrant.name] = _on_device(clock, one.replay, one.entrant.before)
        if one.entrant.launch:
            calls[f"{one.entrant.name} launch"] = _by_the_wall(one.entrant.launch)
    text = f"{case.scenario}, {case.profile.users} users: measuring"
    samples = interleaved(calls, rounds, lambda done: show(text, done, rounds))
    distances = {one.entrant.name: one.distance for one in taking if one.distance}
    return list(rows_of(case, [one.entrant for one in taking], samples, distances, 2e-9 * MATRIX_SIZE**3))


def _on_device(clock: Clock, run: Run, before: Run | None) -> Callable[[], float]:
    def timed() -> float:
        if before:
            before()
        return clock.device_ms(run)

    return timed


def _by_the_wall(run: Run) -> Callable[[], float]:
    return lambda: wall_ms(run)


def _matrix_product(device: torch.device) -> Run:
    """On random numbers: the chip is faster on zeros."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right, out = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).to(dtype) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)
