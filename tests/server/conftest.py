"""A model's spec, and requests for it."""

from __future__ import annotations

import pytest

from flame.engine.presets import preset
from flame.engine.spec import ModelSpec
from flame.server.signature import Signature


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return preset("tiny-climber")


@pytest.fixture(scope="session")
def signature(spec: ModelSpec) -> Signature:
    return Signature(spec)
