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
from flame.engine.backends.fused.programs import kernels_of, program_type
from flame.engine.presets import preset, random_weights
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile
from flame.layout import SOURCE_CANDIDATES, SOURCE_EVENTS
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


class Launch:
    """A whole launch of a program: it gathers `words`, which lie on the device, so that they can change between two."""

    def __init__(self, program: Any, spec: ModelSpec, profile: Profile) -> None:
        self.program, self.memory = program, program.memory(profile)
        layout = spec.layout(profile)
        self.words = torch.zeros(layout.words, dtype=torch.int32, device="cuda")
        there = np.zeros(layout.words, np.int32)
        sources = layout.sources(there)
        sources[:, [SOURCE_EVENTS, SOURCE_CANDIDATES]] += self.words.data_ptr() - there.ctypes.data
        self.sources = torch.from_numpy(sources).cuda()

    def __call__(self) -> None:
        self.program.gather(self.memory, self.words, self.sources, "all")
        self.program.rank(self.memory)


def scores(launch: Launch, words: Sequence[Tensor], run: Callable[[], object], count: int) -> list[Tensor]:
    """Of `count` launches one right behind the other."""
    found, memory = [], launch.memory
    for turn in range(count):
        launch.words.copy_(words[turn % len(words)])
        memory.words.fill_(-1)
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
    launch = Launch(one_by_one, spec, profile)
    expected = scores(launch, words, launch, len(words))
    launch = Launch(dependent, spec, profile)
    graph = captured(launch)
    for run in (graph.replay, launch):
        for turn, found in enumerate(scores(launch, words, run, REPLAYS)):
            assert torch.equal(found, expected[turn % len(words)]), turn


@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("model", ["flame-base", "hstu-1k"])
def test_graphs_keep_dependent_launches(make: Program, model: str, dependent: bool) -> None:
    spec = preset(model)
    program = make(spec, (), dependent)
    found = edges(captured(Launch(program, spec, PROFILES[0])))
    assert len(found) >= 4
    assert found == [dependent] * len(found)
