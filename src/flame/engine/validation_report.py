"""What `flame validate` says: measured against stated tolerances, as text and as plain data."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from flame.engine.agreement import TaskAgreement


class _Failure(NamedTuple):
    """How many times its tolerance something is, and the line that says so."""

    times: float
    text: str


class Tolerance(msgspec.Struct, frozen=True):
    """Most error and least agreement of a precision; errors in units of the oracle's standard deviation."""

    max_relative: float
    rms_relative: float
    kendall: float
    top_overlap: float
    isolation: float


class IsolationResult(msgspec.Struct, frozen=True):
    """One arrangement: how many users' scores were compared, and the largest difference in standard deviations."""

    check: str
    compared: int
    worst: float


class ValidationReport(msgspec.Struct, frozen=True):
    """An engine compared with the oracle. `passed` is the verdict, `failures` its reasons."""

    model: str
    version: str
    backend: str
    oracle: str
    device: str
    precision: str
    seed: int
    profiles: tuple[str, ...]
    requests: int
    pairs: int
    tolerance: Tolerance
    tasks: tuple[TaskAgreement, ...]
    isolation: tuple[IsolationResult, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for everything out of tolerance, what is furthest out first."""
        found = [failure for task in self.tasks for failure in self._task_failures(task)]
        found += self._isolation_failures()
        return tuple(text for _, text in sorted(found, key=lambda failure: failure[0], reverse=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the verdict; an error is infinite where an engine gave NaN or wrote nothing."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        return tree | {"passed": self.passed, "failures": list(self.failures)}

    def render(self) -> str:
        """The report as text of at most 100 columns."""
        lines = [
            f"{self.model} {self.version}: backend {self.backend} ({self.precision}, {self.device}) "
            f"against {self.oracle}",
            f"{self.requests} random requests, {self.pairs} user-item pairs, seed {self.seed}, "
            f"profiles {', '.join(self.profiles)}",
            "",
            f"{'task':<20}{'max error':>12}{'max / std':>12}{'rms / std':>12}{'kendall':>10}{'top 10':>9}",
            *map(self._task_line, self.tasks),
            f"{'tolerance':<20}{'':>12}{self.tolerance.max_relative:>12.1e}{self.tolerance.rms_relative:>12.1e}"
            f"{self.tolerance.kendall:>10.3f}{self.tolerance.top_overlap:>9.2f}",
            "",
            f"{'candidate isolation':<20}{'compared':>12}{'worst / std':>12}",
            *(f"{result.check:<20}{result.compared:>12}{result.worst:>12.1e}" for result in self.isolation),
            f"{'tolerance':<20}{'':>12}{self.tolerance.isolation:>12.1e}",
            "",
            *(f"FAILED {failure}" for failure in self.failures),
            "PASSED" if self.passed else f"{len(self.failures)} checks failed",
        ]
        return "\n".join(lines)

    def _task_line(self, task: TaskAgreement) -> str:
        return (
            f"{task.task:<20}{task.max_abs:>12.1e}{task.max_relative:>12.1e}{task.rms_relative:>12.1e}"
            f"{task.kendall:>10.4f}{task.top_overlap:>9.3f}"
        )

    def _task_failures(self, task: TaskAgreement) -> list[_Failure]:
        """Written so that a NaN fails."""
        found = []
        for name in ("max_relative", "rms_relative"):
            value, limit = getattr(task, name), getattr(self.tolerance, name)
            if not value <= limit:
                found.append(_Failure(_times(value, limit), f"{task.task}: {name} {value:.2e} is over {limit:.1e}"))
        for name in ("kendall", "top_overlap"):
            value, limit = getattr(task, name), getattr(self.tolerance, name)
            if not value >= limit:
                far = _times(1 - value, 1 - limit)
                found.append(_Failure(far, f"{task.task}: {name} {value:.4f} is under {limit}"))
        return found

    def _isolation_failures(self) -> list[_Failure]:
        limit = self.tolerance.isolation
        return [
            _Failure(_times(result.worst, limit), f"isolation, {result.check}: {result.worst:.2e} is over {limit:.1e}")
            for result in self.isolation
            if not result.worst <= limit
        ]


def _times(value: float, limit: float) -> float:
    """How many times `limit` something is, infinite for a NaN and where nothing is tolerated."""
    return math.inf if math.isnan(value) or limit <= 0 else value / limit
