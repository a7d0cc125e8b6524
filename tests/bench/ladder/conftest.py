"""Small scenarios of the ladder, for a CPU."""

from __future__ import annotations

import pytest
import torch

from flame.bench.ladder import cases, measure
from flame.bench.ladder.cases import Case, Scenario
from flame.engine.package import load


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenarios on tiny models; `mixed` has users with different numbers of candidates."""
    for name, source, candidates in (
        ("base", "preset:tiny-climber", (23,)),
        ("mixed", "preset:tiny-climber", (23, 5, 11)),
        ("hstu", "preset:tiny-hstu", (9, 17)),
    ):
        monkeypatch.setitem(cases.SCENARIOS, name, Scenario(source, 36, candidates, (2,), cases.CLIMBER))
    monkeypatch.setattr(measure, "MATRIX_SIZE", 64)


def case_of(scenario: str, source: str = "", users: int = 3, seed: int = 0) -> Case:
    package = load(source or cases.SCENARIOS[scenario].source)
    return Case.draw(scenario, package, users, seed, torch.device("cpu"))


@pytest.fixture(name="case_of")
def _case_of() -> object:
    return case_of
