"""A small model, traffic for it, and orchestrators over an engine whose launches take no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flame.bench.distributions import Choice
from flame.bench.orchestrator.idle import IdleEngine
from flame.bench.orchestrator.traffic import Traffic
from flame.config import OrchestratorConfig
from flame.engine.backends.eager import EagerEngine
from flame.engine.package import load
from flame.engine.spec import Profile, ProfileCost
from flame.metrics import Metrics
from flame.orchestrator.pool import Orchestrator


def cost(profile: Profile) -> ProfileCost:
    """A launch of two users is cheaper than two launches, one of four is not."""
    price = {1: 1.0, 2: 1.6, 4: 4.4}[profile.users] * profile.candidates
    return ProfileCost(price, 0.5 * price, 0.5 * price)


@pytest.fixture(scope="session")
def engine() -> IdleEngine:
    profiles = [Profile(users, 30, size) for users in (1, 2, 4) for size in (8, 16)]
    return IdleEngine(EagerEngine(load("preset:tiny-climber"), profiles, costs={one: cost(one) for one in profiles}))


@pytest.fixture(scope="session")
def traffic(engine: IdleEngine) -> Traffic:
    return Traffic(engine.spec, 30, Choice((8, 16)), 40, seed=0)


@pytest.fixture
def start(engine: IdleEngine) -> Iterator[Callable[..., Orchestrator]]:
    started: list[Orchestrator] = []

    def make(**settings: Any) -> Orchestrator:
        started.append(Orchestrator(engine, OrchestratorConfig(**settings), Metrics()))
        return started[-1]

    yield make
    for orchestrator in started:
        orchestrator.close()
