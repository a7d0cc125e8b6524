"""Rankers of both architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from flame.config import OrchestratorConfig
from flame.engine.package import ModelPackage, load
from tests.ranker.parts import Bench

MODELS = ["tiny-climber", "tiny-hstu"]


@pytest.fixture(scope="module", params=MODELS)
def package(request: pytest.FixtureRequest) -> ModelPackage:
    return load(f"preset:{request.param}")


@pytest.fixture
def bench(package: ModelPackage) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**settings: object) -> Bench:
        made.append(Bench(package, OrchestratorConfig(**settings)))
        return made[-1]

    yield make
    for one in made:
        one.close()
