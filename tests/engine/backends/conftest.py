"""Engines of small models with odd sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flame.engine.backends.compiled import CompiledEngine
from flame.engine.backends.compiled_model import constants
from flame.engine.backends.eager import EagerEngine
from flame.engine.kernels.cpu.compiler import compile_library
from flame.engine.package import ModelPackage
from flame.engine.presets import random_weights
from flame.engine.probe import Packed
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile

MakePackage = Callable[[ModelSpec], ModelPackage]
MakeEngine = Callable[..., CompiledEngine]
MakePacked = Callable[..., Packed]

HISTORY, CANDIDATES = 300, 150
"""Several row tiles and several chunks of keys, and no multiple of either."""


@pytest.fixture(scope="session")
def library_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelSpec], Path]:
    """The compiled library of a spec."""
    folder = tmp_path_factory.mktemp("libraries")

    def library(spec: ModelSpec) -> Path:
        sizes = constants(spec)
        path = folder / f"{hashlib.sha256(repr((spec.architecture, sizes)).encode()).hexdigest()}.so"
        if not path.exists():
            compile_library(f"{spec.architecture}.cpp", sizes, path)
        return path

    return library


@pytest.fixture
def make_package() -> MakePackage:
    """A package with random weights."""
    return lambda spec: ModelPackage(spec, random_weights(spec, seed=1), None, f"{spec.name}-fingerprint")


@pytest.fixture
def make_engine(library_of: Callable[[ModelSpec], Path], make_package: MakePackage) -> Iterator[MakeEngine]:
    """A compiled engine with random weights, or those of a given package."""
    engines: list[CompiledEngine] = []

    def make(spec: ModelSpec, threads: int = 2, package: ModelPackage | None = None) -> CompiledEngine:
        engine = CompiledEngine(package or make_package(spec), (), library_of(spec), threads)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def oracle_of(make_package: MakePackage) -> Callable[[ModelSpec], EagerEngine]:
    """The oracle with the same weights."""
    return lambda spec: EagerEngine(make_package(spec), ())


@pytest.fixture
def wide_spec(any_spec: ModelSpec) -> ModelSpec:
    """Each small model in turn, with room for several tiles."""
    limits = msgspec.structs.replace(any_spec.input, max_history=HISTORY, max_candidates=CANDIDATES)
    return msgspec.structs.replace(any_spec, input=limits)


@pytest.fixture
def make_packed() -> MakePacked:
    """A packed buffer of random users; words that hold nothing are NaN.

    `share` of each sequence's capacity is in use; a list gives one share for each user.
    """

    def make(
        spec: ModelSpec, counts: Sequence[int], share: Sequence[float] | float = 1.0, seed: int = 0
    ) -> tuple[Profile, Packed]:
        profile = Profile(len(counts), spec.input.max_history, spec.input.max_candidates)
        layout = spec.layout(profile)
        shares = [share] * len(counts) if isinstance(share, float) else share
        lengths = [
            [int(part * sequence.capacity(profile.history)) for sequence in spec.input.sequences] for part in shares
        ]
        words = random_words(spec, layout, lengths, counts, np.random.default_rng(seed))
        return profile, Packed(layout, words, len(counts))

    return make
