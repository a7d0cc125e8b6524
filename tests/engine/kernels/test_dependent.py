"""Programs whose kernels begin while the one before still runs give the bits of those whose kernels do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flame.engine.backends.fused.precision import PRECISIONS
from flame.engine.backends.fused.program import LaunchMemory
from flame.engine.backends.fused.programs import kernels_of, program_type
from flame.engine.presets import preset, random_weights
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile
from tests.engine.kernels.cubin_cache import cached

pytestmark = pytest.mark.gpu

REPLAYS = 300
PROFILES = (Profile(1, 512, 128), Profile(8, 300, 100))
MODELS = (("flame-base", ()), ("flame-base", ("stack",)), ("flame-base", ("head",)), ("hstu-1k", ()))
Program = Callable[..., Any]


@pytest.fixture
def make(cubins: Path, request: pytest.FixtureRequest) -> Program:
    """Programs on the GPU, whose kernels are launched as dependents or not."""
    from flame.engine.kernels.driver import Driver

    major, minor = torch.cuda.get_device_capability()
    capability = 10 * major + minor
    if capability < 90:
        pytest.skip("there are no dependent launches before compute capability 9.0")

    def made(spec: ModelSpec, without: Sequence[str], dependent: bool) -> Any:
        parts, precision = frozenset(without), PRECISIONS["bf16"]
        kernels = kernels_of(spec, precision, parts, capability).values()
        code = [replace(cached(kernel, capability, cubins), dependent=dependent) for kernel in kernels]
        driver = Driver(code, torch.device("cuda"))
        request.addfinalizer(driver.close)
        request.addfinalizer(torch.cuda.synchronize)
        return program_type(spec)(spec, precision, driver, random_weights(spec, 3), parts, capability)

    return made


def launches(spec: ModelSpec, profile: Profile) -> list[Tensor]:
    """Words of two launches that are full and one with other counts."""
    layout, users = spec.layout(profile), profile.users
    most = [sequence.capacity(profile.history) for sequence in spec.input.sequences]
    sizes = [(most, profile.candidates), (most, profile.candidates), ([length // 3 for length in most], 5)]
    return [
        torch.from_numpy(random_words(spec, layout, [lengths] * users, [count] * users, np.random.default_rng(seed)))
        for seed, (lengths, count) in enumerate(sizes)
    ]


def scores(memory: LaunchMemory, words: Sequence[Tensor], run: Callable[[], object], count: int) -> list[Tensor]:
    """Of `count` launches one right behind the other."""
    found = []
    for turn in range(count):
        memory.words.copy_(words[turn % len(words)])
        memory.scores.fill_(float("nan"))
        run()
        found.append(memory.scores.nan_to_num(-1.0))
    return found


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        run()
    graph.instantiate()
    return graph


def edges(graph: torch.cuda.CUDAGraph) -> list[bool]:
    """For every edge whether it is a dependent launch."""
    from cuda.bindings import driver

    count = driver.cuGraphGetEdges(graph.raw_cuda_graph(), 0)[-1]
    data = driver.cuGraphGetEdges(graph.raw_cuda_graph(), count)[3]
    return [edge.type == int(driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC) for edge in data]


@pytest.mark.parametrize("profile", PROFILES, ids=str)
@pytest.mark.parametrize(("model", "without"), MODELS)
def test_dependent_launches_give_the_same_bits(
    make: Program, model: str, without: Sequence[str], profile: Profile
) -> None:
    spec = preset(model)
    words = [one.cuda() for one in launches(spec, profile)]
    one_by_one, dependent = (make(spec, without, dependent) for dependent in (False, True))
    memory = one_by_one.memory(profile)
    expected = scores(memory, words, lambda: one_by_one.rank(memory), len(words))
    memory = dependent.memory(profile)
    graph = captured(lambda: dependent.rank(memory))
    for run in (graph.replay, lambda: dependent.rank(memory)):
        for turn, found in enumerate(scores(memory, words, run, REPLAYS)):
            assert torch.equal(found, expected[turn % len(words)]), turn


@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("model", ["flame-base", "hstu-1k"])
def test_graphs_keep_dependent_launches(make: Program, model: str, dependent: bool) -> None:
    spec = preset(model)
    program = make(spec, (), dependent)
    memory = program.memory(PROFILES[0])
    found = edges(captured(lambda: program.rank(memory)))
    assert len(found) >= 4
    assert found == [dependent] * len(found)
