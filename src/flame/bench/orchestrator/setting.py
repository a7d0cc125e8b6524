"""What is measured, and what each kind of device takes where nobody said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flame.bench.distributions import Choice, LogNormal
from flame.bench.workloads import SCENARIOS, Scenario
from flame.errors import ConfigError
from flame.orchestrator.policies import POLICIES

BASELINE = "implicit"
"""The policy that the others are compared with."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """Of a kind of device; `settings` are those of `Config` by dotted name, laid below all that a user says."""

    model: str
    traffic: Scenario
    deadline_ms: float
    settings: Mapping[str, Any]


DEFAULTS = {
    "cuda": Defaults(
        "preset:flame-long",
        SCENARIOS["mixed"],
        25.0,
        {
            "orchestrator.users": (1, 2, 4, 8, 16, 32),
            # One launches while the other fills and answers. A third serves more where nothing is refused, and starves
            # with the others where a sender in the same interpreter refuses all the time.
            "orchestrator.executors": 2,
            "orchestrator.keep_states": 256,
            "orchestrator.max_in_flight": 1024,
        },
    ),
    # The mixed scenario at a quarter of its size: some hundred requests a second on two cores.
    "cpu": Defaults(
        "preset:flame-base",
        Scenario(256, Choice((32, 64, 128, 256))),
        100.0,
        {
            "orchestrator.users": (1, 2, 4),
            "orchestrator.keep_states": 64,
            "orchestrator.max_in_flight": 256,
        },
    ),
}


@dataclass(frozen=True, slots=True)
class OrchestratorBench:
    """What to send, and for how long. Times are in the units of their names.

    Every run measures `seconds` after a warm-up, and is made `rounds` times, in turns with those of other policies.

    `share` of a capacity is offered in open loop, `overload` times as much where requests have to be refused.
    `distinct` requests are packed before the run and sent in turn, with ever new users; of `users` users by a law with
    exponent `zipf` in the row of that name.
    """

    model: str
    history: int
    candidates: Choice | LogNormal
    deadline_ms: float
    policies: tuple[str, ...] = (BASELINE, "largest-first", "cost")
    rounds: int = 3
    seconds: float = 2.0
    warm_up_s: float = 1.0
    share: float = 0.8
    overload: float = 3.0
    distinct: int = 256
    users: int = 1000
    zipf: float = 1.05
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [policy for policy in self.policies if policy not in POLICIES]
        if unknown or not self.policies:
            raise ConfigError(f"there is no policy {unknown or 'given'}; there are {', '.join(POLICIES)}")
