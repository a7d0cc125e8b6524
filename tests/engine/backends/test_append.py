"""A history that has grown: encoded from where it ended before, with the bits of an encode of the whole."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame.engine.backends.base import Engine
from flame.engine.backends.compiled import CompiledEngine
from flame.engine.backends.eager import EagerEngine
from flame.engine.backends.fused.buffers import FusedBuffers
from flame.engine.backends.fused.engine import FusedEngine
from flame.engine.backends.fused.hstu import HstuMemory
from flame.engine.backends.fused.lanes import HostLane
from flame.engine.backends.fused.precision import PRECISIONS
from flame.engine.backends.fused.programs import program_type
from flame.engine.kernels.interpreter import Interpreter
from flame.engine.package import ModelPackage
from flame.engine.presets import preset, random_weights
from flame.engine.probe import Packed, Probe, oldest
from flame.engine.sampling import NAN_WORD, random_words
from flame.engine.spec import ModelSpec, Profile, RelativeBias
from flame.errors import ExecutionError
from flame.layout import CANDIDATES, EVENT_AGE, LENGTHS
from flame.schema import SequenceSpec

MakePackage = Callable[[ModelSpec], ModelPackage]

HISTORY, CANDIDATES_MOST = 300, 9
TILE = 32


def longer(spec: ModelSpec, **changes: object) -> ModelSpec:
    limits = msgspec.structs.replace(spec.input, max_history=HISTORY, max_candidates=CANDIDATES_MOST, **changes)
    return msgspec.structs.replace(spec, input=limits)


def with_sizes(spec: ModelSpec, **sizes: object) -> ModelSpec:
    kind = "climber" if spec.climber else "hstu"
    return msgspec.structs.replace(spec, **{kind: msgspec.structs.replace(getattr(spec, kind), **sizes)})


CLIMBER, HSTU = longer(preset("tiny-climber-appendable")), longer(preset("tiny-hstu-appendable"))
SPECS = {
    "climber": CLIMBER,
    "climber-bias-own-wiring": with_sizes(
        CLIMBER, relative_bias=RelativeBias(positions=9, time_buckets=12), wiring="climber"
    ),
    "hstu": HSTU,
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return SPECS[request.param]


def packed_users(spec: ModelSpec, lengths: list[int], seed: int) -> tuple[Profile, Packed]:
    profile = Profile(len(lengths), HISTORY, CANDIDATES_MOST)
    layout = spec.layout(profile)
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, CANDIDATES_MOST + 1, len(lengths)).tolist()
    words = random_words(spec, layout, [[length] for length in lengths], counts, rng)
    return profile, oldest(Packed(layout, words, len(lengths)), lengths)


Steps = list[list[int]]
"""For each user, the lengths of its history as it grows."""


def grown(engine: Engine, profile: Profile, packed: Packed, steps: Steps) -> list[np.ndarray]:
    """Scores against states that were encoded step by step; what no step may read is NaN, in words and states."""
    probe = Probe(engine)
    states = [engine.state(HISTORY) for _ in steps]
    held = [0] * len(steps)
    for lengths in zip(*steps, strict=True):
        shorter = oldest(packed, list(lengths))
        views = packed.layout.views(shorter.words)
        views.candidates[:] = NAN_WORD
        for user, before in enumerate(held):
            prefix = before // engine.append_tile * engine.append_tile
            views.header[user, packed.layout.record.prefix] = prefix
            views.events[user, 0, :prefix, np.arange(views.events.shape[3]) != EVENT_AGE] = NAN_WORD
        buffers = probe._fill(profile, shorter)
        if isinstance(buffers, FusedBuffers):
            spoil(buffers)
        engine.encode(buffers, states)
        held = list(lengths)
    views = packed.layout.views(packed.words)
    last = Packed(packed.layout, packed.words.copy(), packed.users)
    packed.layout.views(last.words).events[:] = NAN_WORD
    packed.layout.views(last.words).header[:, LENGTHS] = 7
    buffers = probe._fill(profile, last)
    engine.score(buffers, states)
    return [buffers.scores[user, : views.header[user, CANDIDATES]].copy() for user in range(packed.users)]


def spoil(buffers: FusedBuffers) -> None:
    """Makes NaN of all that a launch on a GPU has to write before it reads it."""
    work = buffers.memory.work if isinstance(buffers.memory, HstuMemory) else buffers.memory.layers
    for tensor in (buffers.memory.x, *work):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            tensor.fill_(torch.nan)


@st.composite
def growing(draw: st.DrawFn) -> tuple[list[int], Steps, int]:
    """Some users' histories, the steps in which each grows, and a seed."""
    most, count = 290, draw(st.integers(1, 3))
    sizes = st.one_of(st.integers(0, most), st.sampled_from([31, 32, 33, 64, 128, 160, most]))
    steps = [sorted(draw(st.lists(sizes, min_size=count, max_size=count))) for _ in range(draw(st.integers(1, 3)))]
    return [own[-1] for own in steps], steps, draw(st.integers(0, 2**16))


EXAMPLES = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(case=growing())
@EXAMPLES
def test_compiled_has_the_bits_of_the_whole(
    spec: ModelSpec, make_engine: Callable[..., CompiledEngine], case: tuple[list[int], Steps, int]
) -> None:
    lengths, steps, seed = case
    profile, packed = packed_users(spec, lengths, seed)
    engine = make_engine(spec, threads=1 + seed % 2)
    assert engine.append_tile == TILE
    for mine, whole in zip(grown(engine, profile, packed, steps), Probe(engine).rank(profile, packed), strict=True):
        np.testing.assert_array_equal(mine, whole)
    engine.close()


def interpreted(spec: ModelSpec, precision: str, *without: str) -> FusedEngine:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("this process compiles kernels for its GPU; Triton's interpreter needs TRITON_INTERPRET=1")
    runtime, weights = Interpreter(), random_weights(spec, 1)
    program = program_type(spec)(spec, PRECISIONS[precision], runtime, weights, frozenset(without), 80)
    return FusedEngine(spec, (), program, device=runtime.device, precision=precision, lane=HostLane)


FUSED_STEPS = [[130, 257], [128, 129]]
"""Tiles of 128 events, touched and crossed; the interpreter takes a second for every tile of a user."""


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "precision", "without"),
    [
        ("climber-bias-own-wiring", "fp16", ()),
        ("climber", "fp32", ("feed-forward",)),
        ("hstu", "fp32", ()),
    ],
)
def test_fused_has_the_bits_of_the_whole(name: str, precision: str, without: tuple[str, ...]) -> None:
    spec = with_sizes(SPECS[name], layers=2)
    engine = interpreted(spec, precision, *without)
    assert engine.append_tile == 128
    profile, packed = packed_users(spec, [steps[-1] for steps in FUSED_STEPS], 5)
    for mine, whole in zip(
        grown(engine, profile, packed, FUSED_STEPS), Probe(engine).rank(profile, packed), strict=True
    ):
        np.testing.assert_array_equal(mine, whole)


def test_fused_appends_only_with_its_own_tokens() -> None:
    assert interpreted(SPECS["climber"], "fp32", "tokens").append_tile == 0
    assert interpreted(longer(CLIMBER, positions="newest"), "fp32").append_tile == 0


@given(case=growing())
@EXAMPLES
def test_the_oracle_agrees_with_the_whole(
    spec: ModelSpec, oracle_of: Callable[[ModelSpec], EagerEngine], case: tuple[list[int], Steps, int]
) -> None:
    lengths, steps, seed = case
    profile, packed = packed_users(spec, lengths, seed)
    engine = oracle_of(spec)
    assert engine.append_tile == TILE
    for mine, whole in zip(grown(engine, profile, packed, steps), Probe(engine).rank(profile, packed), strict=True):
        np.testing.assert_allclose(mine, whole, rtol=0, atol=1e-5)


@pytest.fixture(params=["eager", "compiled"])
def engine(request: pytest.FixtureRequest) -> Engine:
    make = request.getfixturevalue({"eager": "oracle_of", "compiled": "make_engine"}[request.param])
    return make(SPECS["climber"])


def test_what_is_appended_matters(engine: Engine) -> None:
    """An append that did nothing would leave the scores of the shorter history."""
    profile, packed = packed_users(engine.spec, [200], 3)
    whole, shorter = (Probe(engine).rank(profile, one)[0] for one in (packed, oldest(packed, [160])))
    assert np.abs(whole - shorter).max() > 1e-3


@pytest.mark.parametrize(
    ("prefix", "held", "message"),
    [
        (31, 64, "prefix of 31 in a history of 100 events; it must be a multiple of 32 within the history"),
        (128, 128, "prefix of 128 in a history of 100"),
        (-32, 64, "prefix of -32"),
        (96, 64, "fewer events than the prefix|a state of 64 events was given for a prefix of 96"),
        (32, 0, "fewer events than the prefix|a state of 0 events was given for a prefix of 32"),
        (32, None, "fewer events than the prefix|a state of 0 events was given for a prefix of 32"),
    ],
)
def test_a_prefix_that_cannot_be_is_refused(engine: Engine, prefix: int, held: int | None, message: str) -> None:
    profile, packed = packed_users(engine.spec, [100], 0)
    probe, state = Probe(engine), engine.state(HISTORY)
    if held is not None:
        views = packed.layout.views(packed.words)
        longer_one = packed_users(engine.spec, [max(held, 1)], 1)[1]
        engine.encode(probe._fill(profile, oldest(longer_one, [held])), [state])
    else:
        views = packed.layout.views(packed.words)
    assert views.header[0, LENGTHS] == 100
    views.header[0, packed.layout.record.prefix] = prefix
    with pytest.raises(ExecutionError, match=message):
        engine.encode(probe._fill(profile, packed), [state])


@pytest.mark.parametrize("name", ["tiny-climber-causal", "tiny-climber", "tiny-hstu"])
def test_models_whose_events_look_ahead_cannot_be_appended_to(
    name: str, oracle_of: Callable[[ModelSpec], EagerEngine]
) -> None:
    spec = preset(name)
    assert not spec.appendable
    assert spec.record.prefix is None
    assert oracle_of(spec).append_tile == 0


def test_which_models_can_be_appended_to() -> None:
    assert all(spec.appendable for spec in SPECS.values())
    assert longer(HSTU, sequences=(SequenceSpec("liked", "actions", actions=(2, 3), limit=290),)).appendable
    halves = (SequenceSpec("older", "part", part=0, of=2), SequenceSpec("newer", "part", part=1, of=2))
    for changed in (
        longer(HSTU, positions="newest"),
        longer(CLIMBER, sequences=halves[:1]),
        longer(CLIMBER, sequences=(SequenceSpec("all"), SequenceSpec("some", "actions", actions=(1,)))),
        with_sizes(HSTU, causal=False),
        with_sizes(HSTU, times="age"),
        with_sizes(CLIMBER, causal=False),
    ):
        assert not changed.appendable
