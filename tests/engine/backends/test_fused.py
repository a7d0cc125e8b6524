"""The fused engine: launches, states and refusals, over a small real program and over the models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch

from flame.engine.backends.base import Engine
from flame.engine.backends.eager import EagerEngine
from flame.engine.backends.fused.engine import FusedEngine
from flame.engine.backends.fused.graph_lane import GraphLane
from flame.engine.backends.fused.lanes import HostLane, StreamLane
from flame.engine.backends.fused.precision import PRECISIONS
from flame.engine.backends.fused.programs import program_type
from flame.engine.backends.fused.state import DeviceState
from flame.engine.kernels.interpreter import Interpreter
from flame.engine.package import ModelPackage
from flame.engine.presets import preset
from flame.engine.probe import Packed, Place, Probe, repack
from flame.engine.spec import ModelSpec, Profile
from flame.engine.validate import TOLERANCES
from flame.errors import ExecutionError
from flame.layout import CANDIDATES, LENGTHS, SCENARIO
from tests.engine.backends.totals import TotalsProgram, expected

# Triton's interpreter turns one-element arrays into loop bounds, and NumPy tells of the NaN in rows that nobody uses.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

SPEC = preset("tiny-climber-bias")
SMALL, LARGE = Profile(3, 20, 7), Profile(2, 37, 23)
MakePacked = Callable[..., tuple[Profile, Packed]]
MakePackage = Callable[[ModelSpec], ModelPackage]
MakeEngine = Callable[[], FusedEngine]


def interpreted() -> FusedEngine:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("this process compiles kernels for its GPU; Triton's interpreter needs TRITON_INTERPRET=1")
    runtime = Interpreter()
    program = TotalsProgram(SPEC, runtime)
    return FusedEngine(SPEC, (SMALL, LARGE), program, device=runtime.device, precision="fp32", lane=HostLane)


def compiled(lane: type[StreamLane]) -> FusedEngine:
    from flame.engine.backends.fused.compiling import compile_kernel
    from flame.engine.kernels.driver import Driver

    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability()
    kernels = TotalsProgram(SPEC, Interpreter()).kernels()
    driver = Driver([compile_kernel(kernel, 10 * major + minor) for kernel in kernels], device)
    program = TotalsProgram(SPEC, driver)
    return FusedEngine(
        SPEC,
        (SMALL, LARGE),
        program,
        device=device,
        precision="fp32",
        lane=partial(lane, device),
        at_close=driver.close,
    )


@pytest.fixture(
    params=[
        pytest.param(interpreted, id="interpreted"),
        pytest.param(partial(compiled, GraphLane), id="graphs", marks=pytest.mark.gpu),
        pytest.param(partial(compiled, StreamLane), id="streams", marks=pytest.mark.gpu),
    ]
)
def make_engine(request: pytest.FixtureRequest) -> Iterator[MakeEngine]:
    """Engines of the totals program: interpreted, on a GPU with graphs, on a GPU without."""
    engines: list[FusedEngine] = []

    def make() -> FusedEngine:
        engines.append(request.param())
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make_engine: MakeEngine) -> FusedEngine:
    return make_engine()


@pytest.fixture
def packed(make_packed: MakePacked) -> Packed:
    """Two users of the large profile: not all candidates, one empty history."""
    return make_packed(SPEC, [23, 9], [0.0, 0.6])[1]


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return all(np.allclose(one, other, rtol=1e-6) for one, other in zip(found, wanted, strict=True))


def test_rank_scores_the_users_of_the_launch(engine: FusedEngine, packed: Packed) -> None:
    assert same(Probe(engine).rank(LARGE, packed), expected(SPEC, packed))


def test_encode_and_score_give_the_bits_of_rank(engine: FusedEngine, packed: Packed) -> None:
    probe = Probe(engine)
    once = probe.rank(LARGE, packed)
    twice = probe.encode_and_score(LARGE, packed)
    assert all((one == other).all() for one, other in zip(once, twice, strict=True))


def test_a_state_is_scored_in_any_profile_and_slot(engine: FusedEngine, make_packed: MakePacked) -> None:
    _, source = make_packed(SPEC, [5, 7], [0.3, 0.9])
    wanted = expected(SPEC, source)
    buffers = engine.buffers(LARGE)
    buffers.words[:] = source.words
    states = [engine.state(LARGE.history) for _ in range(2)]
    engine.encode(buffers, states)
    small = engine.buffers(SMALL)
    from_view, to_view = source.layout.views(source.words), small.layout.views(small.words)
    for slot, user in enumerate((1, 0, 1)):
        to_view.header[slot, :LENGTHS] = from_view.header[user, :LENGTHS]
        to_view.candidates[slot] = from_view.candidates[user, :7]
    engine.score(small, [states[1], states[0], states[1]])
    found = [small.scores[0, :7], small.scores[1, :5], small.scores[2, :7]]
    assert same(found, [wanted[1], wanted[0], wanted[1]])


def test_slots_beyond_the_users_are_not_run(engine: FusedEngine, packed: Packed) -> None:
    buffers = engine.buffers(LARGE)
    buffers.words[:] = packed.words
    state, other = engine.state(LARGE.history), engine.state(LARGE.history)
    engine.encode(buffers, [other, state])
    before = state.memory.clone()
    buffers.words[:] = packed.words
    engine.encode(buffers, [other])
    assert torch.equal(state.memory, before)
    buffers.device_scores.fill_(torch.nan)
    buffers.words[:] = packed.words
    engine.rank(buffers, 1)
    assert np.isfinite(buffers.scores[0]).all()
    assert np.isnan(buffers.scores[1]).all()


def test_a_way_is_that_of_its_profile_and_kind(engine: FusedEngine, packed: Packed) -> None:
    assert engine.ways(LARGE) == {"rank": ("narrow", "wide"), "score": ("narrow", "wide")}
    usual = Probe(engine).rank(LARGE, packed)
    engine.take(LARGE, "rank", "wide")
    program = engine.program
    assert isinstance(program, TotalsProgram)
    program.gone.clear()
    probe = Probe(engine)
    found = probe.rank(LARGE, packed)
    assert all((one == other).all() for one, other in zip(found, usual, strict=True))
    assert "wide" in program.gone
    program.gone.clear()
    probe.encode_and_score(LARGE, packed)
    engine.buffers(SMALL)
    assert "wide" not in program.gone


@pytest.mark.parametrize("users", [-1, 0, 4])
def test_a_launch_has_as_many_users_as_its_profile(engine: FusedEngine, users: int) -> None:
    with pytest.raises(ExecutionError, match=f"profile 3x20\\+7 takes 1 to 3 users, not {users}"):
        engine.rank(engine.buffers(SMALL), users)


def test_a_state_that_was_never_encoded_is_refused(engine: FusedEngine) -> None:
    with pytest.raises(ExecutionError, match="nothing was encoded into this state yet"):
        engine.score(engine.buffers(SMALL), [engine.state(SMALL.history)])


def test_what_another_engine_made_is_refused(make_engine: MakeEngine, oracle_of: Callable[[ModelSpec], Engine]) -> None:
    engine, twin, eager = make_engine(), make_engine(), oracle_of(SPEC)
    buffers, state = engine.buffers(SMALL), engine.state(SMALL.history)
    with pytest.raises(ExecutionError, match="buffers were made by another engine"):
        engine.rank(twin.buffers(SMALL), 1)
    with pytest.raises(ExecutionError, match="buffers of type LaunchBuffers were made by another engine"):
        engine.rank(eager.buffers(SMALL), 1)
    with pytest.raises(ExecutionError, match="a state of type EagerState was made by another engine"):
        engine.score(buffers, [eager.state(SMALL.history)])
    with pytest.raises(ExecutionError, match="a state was made by another engine"):
        twin.encode(twin.buffers(SMALL), [state])
    assert isinstance(state, DeviceState)
    assert not state.encoded


def test_a_state_without_room_is_refused(engine: FusedEngine) -> None:
    with pytest.raises(ExecutionError, match=r"a state for 0 events cannot take profile 2x37\+23"):
        engine.encode(engine.buffers(LARGE), [engine.state(0)])


@pytest.mark.parametrize(
    ("word", "value"),
    [(SCENARIO, 3), (SCENARIO, -1), (CANDIDATES, 24), (CANDIDATES, -1), (LENGTHS, 38), (LENGTHS + 2, -5)],
)
def test_a_header_that_would_read_out_of_bounds_is_refused(
    engine: FusedEngine, packed: Packed, word: int, value: int
) -> None:
    buffers = engine.buffers(LARGE)
    buffers.words[:] = packed.words
    buffers.layout.views(buffers.words).header[1, word] = value
    with pytest.raises(ExecutionError, match=f"slot 1 of profile 2x37.*{value}"):
        engine.rank(buffers, 2)
    engine.rank(buffers, 1)


def test_a_closed_engine_refuses(engine: FusedEngine) -> None:
    buffers, state = engine.buffers(SMALL), engine.state(SMALL.history)
    engine.close()
    engine.close()
    for launch in (
        lambda: engine.rank(buffers, 1),
        lambda: engine.encode(buffers, [state]),
        lambda: engine.buffers(SMALL),
        lambda: engine.state(SMALL.history),
    ):
        with pytest.raises(ExecutionError, match="the engine is closed"):
            launch()


@pytest.mark.parametrize(
    ("model", "precision", "without"),
    [
        ("tiny-climber", "fp32", ()),
        ("tiny-climber-bias", "fp16", ("feed-forward",)),
        ("tiny-hstu", "fp16", ()),
    ],
)
def test_a_model_interpreted_agrees_with_the_oracle(
    make_package: MakePackage, make_packed: MakePacked, model: str, precision: str, without: tuple[str, ...]
) -> None:
    package = make_package(preset(model))
    engine = interpreted_model(package, precision, frozenset(without))
    _, packed = make_packed(package.spec, [7, 19], [0.7, 0.0])
    wanted = Probe(EagerEngine(package, ())).rank(LARGE, packed)
    probe = Probe(engine)
    found = probe.rank(LARGE, packed)
    scale = np.concatenate(wanted).std(axis=0)
    worst = max((np.abs(one - other) / scale).max() for one, other in zip(found, wanted, strict=True))
    assert worst < TOLERANCES[precision].max_relative
    twice = probe.encode_and_score(LARGE, packed)
    assert all((one == other).all() for one, other in zip(found, twice, strict=True))
    alone = repack(packed, package.spec.layout(SMALL), [Place(1, [4, 18, 0])])
    assert (probe.rank(SMALL, alone)[0] == found[1][[4, 18, 0]]).all()


def interpreted_model(package: ModelPackage, precision: str, without: frozenset[str]) -> FusedEngine:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("this process compiles kernels for its GPU; Triton's interpreter needs TRITON_INTERPRET=1")
    spec, runtime = package.spec, Interpreter()
    program = program_type(spec)(spec, PRECISIONS[precision], runtime, package.weights, without, 80)
    return FusedEngine(spec, (SMALL, LARGE), program, device=runtime.device, precision=precision, lane=HostLane)
