"""Climber's program against the eager oracle: every launch, odd sizes, NaN where nothing is meant; bits as promised."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import torch

from flame.engine.backends.fused.climber import ClimberMemory, ClimberProgram
from flame.engine.backends.fused.precision import PRECISIONS, Precision
from flame.engine.backends.fused.programs import Nowhere
from flame.engine.backends.fused.state import new_state
from flame.engine.inputs import unpack
from flame.engine.kernels.kernel import Runtime
from flame.engine.models import create
from flame.engine.models.head import activate
from flame.engine.presets import preset, random_weights
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile, RelativeBias
from flame.errors import BackendUnavailable
from flame.layout import CANDIDATES, LENGTHS, Words
from flame.schema import SequenceSpec

# The interpreter takes the bounds of a loop out of arrays of one element.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

PROFILE = Profile(users=2, history=37, candidates=23)
COUNTS = (23, 4)
TOLERANCE = {"fp32": 3e-6, "fp16": 4e-3, "bf16": 4e-2}
PRESETS = ("tiny-climber", "tiny-climber-bias", "tiny-climber-causal", "tiny-climber-own-wiring", "bias-causal")


def spec_of(name: str, **sizes: object) -> ModelSpec:
    """A preset with two layers, the fewest that have a first and a last one, and other `sizes`."""
    spec = preset("tiny-climber-bias" if name == "bias-causal" else name)
    sizes = {"layers": 2} | ({"causal": True} if name == "bias-causal" else {}) | sizes
    return msgspec.structs.replace(spec, climber=msgspec.structs.replace(spec.climber, **sizes))


@pytest.fixture(params=PRESETS)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return spec_of(request.param)


def make_program(spec: ModelSpec, precision: Precision, runtime: Runtime, *without: str) -> ClimberProgram:
    capability = 90
    if runtime.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    return ClimberProgram(spec, precision, runtime, random_weights(spec, 3), frozenset(without), capability)


def memory_of(program: ClimberProgram, profile: Profile) -> ClimberMemory:
    """Memory in which everything that a launch has to write before it reads it is NaN."""
    memory = program.memory(profile)
    memory.x.fill_(math.nan)
    memory.scores.fill_(math.nan)
    for tensor in memory.layers[3:]:
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            tensor.fill_(math.nan)
    memory.own_memory[:, 256:] = 0xFF
    return memory


def lengths_of(spec: ModelSpec, *histories: int) -> list[list[int]]:
    return [[sequence.capacity(history) for sequence in spec.input.sequences] for history in histories]


def words_of(
    spec: ModelSpec, profile: Profile, histories: Sequence[int], counts: Sequence[int], seed: int = 0
) -> Words:
    layout = spec.layout(profile)
    return random_words(spec, layout, lengths_of(spec, *histories), counts, np.random.default_rng(seed))


def ranked(program: ClimberProgram, memory: ClimberMemory, words: Words) -> torch.Tensor:
    memory.words.copy_(torch.from_numpy(words))
    program.rank(memory)
    return memory.scores.cpu().clone()


def scored_in_two(program: ClimberProgram, spec: ModelSpec, words: Words, capacity: int) -> torch.Tensor:
    """Encode into states of `capacity` events from the events alone, then score with the candidates alone."""
    layout, memory = spec.layout(PROFILE), memory_of(program, PROFILE)
    states = [new_state(capacity, program.state_bytes(capacity), memory.words.device) for _ in COUNTS]
    for state in states:
        state.memory[256:] = 0xFF
    memory.states.copy_(torch.tensor([state.address for state in states]))
    events, candidates = words.copy(), words.copy()
    layout.views(events).candidates[:] = np.iinfo(np.int32).min
    layout.views(candidates).events[:] = np.iinfo(np.int32).min
    layout.views(candidates).header[:, LENGTHS : LENGTHS + len(spec.input.sequences)] = 99
    memory.words.copy_(torch.from_numpy(events))
    program.encode(memory)
    memory.x.fill_(math.nan)
    memory.words.copy_(torch.from_numpy(candidates))
    program.score(memory)
    return memory.scores.cpu().clone()


def wanted(spec: ModelSpec, words: Words, profile: Profile) -> torch.Tensor:
    model = create(spec)
    model.load_state_dict(random_weights(spec, 3))
    with torch.inference_mode():
        return activate(model.rank(unpack(torch.from_numpy(words), spec.layout(profile))), spec.tasks)


def live(scores: torch.Tensor, counts: Sequence[int] = COUNTS) -> torch.Tensor:
    return torch.cat([scores[user, :count] for user, count in enumerate(counts)])


@pytest.fixture
def fp32_interpreted(precision: Precision, runtime: Runtime) -> Precision:
    """Each precision on a GPU. The interpreter is slow, and what differs in fp16 is held kernel by kernel."""
    if runtime.device.type == "cpu" and precision.name != "fp32":
        pytest.skip("interpreted in fp32 alone")
    return precision


def check(spec: ModelSpec, precision: Precision, runtime: Runtime, *without: str) -> None:
    program = make_program(spec, precision, runtime, *without)
    words = words_of(spec, PROFILE, (37, 0), COUNTS)
    got = ranked(program, memory_of(program, PROFILE), words)
    error = (live(got) - live(wanted(spec, words, PROFILE))).abs().max()
    assert error < TOLERANCE[precision.name], f"error {error}"
    assert live(scored_in_two(program, spec, words, 256)).equal(live(got))


def test_launches_agree_with_the_oracle_and_two_steps_have_the_bits_of_one(
    spec: ModelSpec, fp32_interpreted: Precision, runtime: Runtime
) -> None:
    check(spec, fp32_interpreted, runtime)


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("tiny-climber", ("feed-forward",)),
        ("tiny-climber-own-wiring", ("feed-forward",)),
        ("bias-causal", ("tokens", "head")),
    ],
)
def test_without_fusions_it_is_the_same_model(
    name: str, without: tuple[str, ...], fp32_interpreted: Precision, runtime: Runtime
) -> None:
    check(spec_of(name), fp32_interpreted, runtime, *without)


def test_fp16(runtime: Runtime) -> None:
    check(spec_of("bias-causal"), PRECISIONS["fp16"], runtime)


def test_one_layer_and_a_dim_in_two_pieces(fp32_interpreted: Precision, runtime: Runtime) -> None:
    check(spec_of("tiny-climber", dim=36, heads=3, layers=1, ffn=20), fp32_interpreted, runtime)


def test_a_climber_too_wide_for_kernels_of_a_whole_half(fp32_interpreted: Precision, runtime: Runtime) -> None:
    check(spec_of("tiny-climber", dim=320, heads=4, layers=1, ffn=96), fp32_interpreted, runtime)


@pytest.mark.gpu
@pytest.mark.parametrize("without", [(), ("stack",), ("stack", "feed-forward")])
@pytest.mark.parametrize("sizes", [{"dim": 64, "heads": 2, "ffn": 128}, {"dim": 256, "heads": 4, "ffn": 512}])
def test_heads_as_the_kernels_like_them(
    sizes: dict[str, int], without: tuple[str, ...], fp32_interpreted: Precision, runtime: Runtime
) -> None:
    check(spec_of("tiny-climber", **sizes), fp32_interpreted, runtime, *without)


def test_an_unused_slot_changes_no_bit(runtime: Runtime) -> None:
    spec = spec_of("tiny-climber")
    program = make_program(spec, PRECISIONS["fp32"], runtime)
    words = words_of(spec, PROFILE, (37, 20), COUNTS)
    both = ranked(program, memory_of(program, PROFILE), words)
    header = spec.layout(PROFILE).views(words).header
    header[1] = 0
    one = ranked(program, memory_of(program, PROFILE), words)
    assert one[0].equal(both[0])
    assert one[1].isnan().all()
    assert scored_in_two(program, spec, words, 128)[0].equal(both[0])


@pytest.mark.parametrize("name", ["tiny-climber", "bias-causal"])
def test_a_candidate_has_the_same_bits_in_any_order_slot_profile_and_company(name: str, runtime: Runtime) -> None:
    spec = spec_of(name)
    schema = msgspec.structs.replace(
        spec.input, max_history=140, max_candidates=80, sequences=(SequenceSpec("all"), SequenceSpec("new", limit=9))
    )
    spec = msgspec.structs.replace(spec, input=schema)
    program = make_program(spec, PRECISIONS["fp32"], runtime)
    words = words_of(spec, PROFILE, (37, 0), COUNTS)
    got = ranked(program, memory_of(program, PROFILE), words)
    other = Profile(users=2, history=130, candidates=70)
    moved = words_of(spec, other, (130, 37), (3, 70), seed=9)
    old, new = spec.layout(PROFILE).views(words), spec.layout(other).views(moved)
    new.header[1], new.header[1, CANDIDATES] = old.header[0], 70
    new.events[1, :, :37] = old.events[0]
    new.candidates[1, 47:] = old.candidates[0, ::-1]
    assert ranked(program, memory_of(program, other), moved)[1, 47:].flip(0).equal(got[0])


@pytest.mark.gpu
@pytest.mark.parametrize("without", [(), ("stack",), ("stack", "feed-forward")])
def test_the_paper_s_model_keeps_its_bits_in_any_company(without: tuple[str, ...], runtime: Runtime) -> None:
    spec = preset("flame-base")
    program = make_program(spec, PRECISIONS["bf16"], runtime, *without)
    small, large = Profile(1, 300, 100), Profile(8, 512, 256)
    words = words_of(spec, small, (299,), (100,))
    alone = ranked(program, memory_of(program, small), words)
    moved = words_of(spec, large, (512, 0, 77, 299, 512, 1, 2, 200), (256, 1, 77, 200, 9, 256, 64, 65), seed=4)
    old, new = spec.layout(small).views(words), spec.layout(large).views(moved)
    new.header[3], new.header[3, CANDIDATES] = old.header[0], 200
    new.events[3, :, :150] = old.events[0]
    new.candidates[3, 100:200] = old.candidates[0, ::-1]
    together = ranked(program, memory_of(program, large), moved)
    assert together[3, 100:200].flip(0).equal(alone[0])
    want = wanted(spec, words, small)
    assert (alone - want).std() < 0.1 * want.std()


def test_kernels_are_known_without_a_device_and_have_names_of_their_own(spec: ModelSpec) -> None:
    for without in ((), ("feed-forward",), ("tokens", "head")):
        program = ClimberProgram(spec, PRECISIONS["bf16"], Nowhere(), None, frozenset(without), 90)
        names = [kernel.name for kernel in program.kernels()]
        assert len(set(names)) == len(names)
        assert "attention" in names


@pytest.mark.parametrize(
    ("capability", "precision", "sizes", "one_launch"),
    [
        (90, "bf16", {}, True),
        (80, "bf16", {}, False),
        (90, "fp16", {}, False),
        (90, "bf16", {"causal": True}, False),
        (90, "bf16", {"wiring": "climber"}, False),
        (90, "bf16", {"relative_bias": RelativeBias()}, False),
        (90, "bf16", {"dim": 128, "heads": 2}, False),
    ],
)
def test_layers_are_one_launch_where_its_kernels_know_the_model(
    capability: int, precision: str, sizes: dict[str, object], one_launch: bool
) -> None:
    spec = preset("flame-base")
    spec = msgspec.structs.replace(spec, climber=msgspec.structs.replace(spec.climber, **sizes))

    def names(*without: str) -> list[str]:
        program = ClimberProgram(spec, PRECISIONS[precision], Nowhere(), None, frozenset(without), capability)
        return [kernel.name for kernel in program.kernels()]

    assert any(name.startswith("climber-stack") for name in names()) == one_launch
    assert ("attention" in names()) != one_launch
    assert "attention" in names("stack")


def test_heads_that_fit_no_tile_are_told() -> None:
    spec = spec_of("tiny-climber", dim=260, heads=1)
    with pytest.raises(BackendUnavailable, match="260"):
        ClimberProgram(spec, PRECISIONS["bf16"], Nowhere(), None, frozenset(), 90)
