"""HSTU's program against the eager oracle: every launch, odd sizes, NaN wherever nothing is meant; bits as promised."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import torch

from flame.engine.backends.fused.hstu import HstuMemory, HstuProgram
from flame.engine.backends.fused.precision import PRECISIONS, Precision
from flame.engine.backends.fused.state import DeviceState, new_state
from flame.engine.inputs import unpack
from flame.engine.kernels.kernel import Runtime
from flame.engine.models import create
from flame.engine.models.head import activate
from flame.engine.presets import preset, random_weights
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile
from flame.errors import BackendUnavailable
from flame.layout import CANDIDATES, LENGTHS, PackedLayout, Words
from flame.schema import ItemTable

# Triton's interpreter takes loop bounds out of arrays in a way that NumPy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

PROFILE = Profile(users=2, history=37, candidates=23)
LENGTHS_OF = ((37,), (0,))
COUNTS = (23, 4)
TOLERANCE = {"fp32": 3e-6, "fp16": 3e-3, "bf16": 2e-2}


@pytest.fixture(params=["tiny-hstu", "tiny-hstu-bidirectional"])
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return preset(request.param)


def make_program(spec: ModelSpec, precision: Precision, runtime: Runtime) -> HstuProgram:
    capability = 90
    if runtime.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    return HstuProgram(spec, precision, runtime, random_weights(spec, 3), frozenset(), capability)


def memory_of(program: HstuProgram, profile: Profile) -> HstuMemory:
    """Memory in which everything that a launch has to write before it reads it is NaN."""
    memory = program.memory(profile)
    for tensor in (memory.x, memory.scores, *memory.work):
        tensor.fill_(float("nan"))
    memory.own[:, 256:] = 0xFF
    return memory


def words_of(
    spec: ModelSpec, profile: Profile, lengths: Sequence[Sequence[int]], counts: Sequence[int], seed: int = 0
) -> Words:
    return random_words(spec, spec.layout(profile), lengths, counts, np.random.default_rng(seed))


def ranked(program: HstuProgram, memory: HstuMemory, words: Words) -> torch.Tensor:
    memory.words.copy_(torch.from_numpy(words))
    program.rank(memory)
    return memory.scores.cpu().clone()


def scored_in_two(program: HstuProgram, memory: HstuMemory, words: Words, capacity: int) -> torch.Tensor:
    """Encode into states of `capacity` events from the events alone, then score with the candidates alone."""
    layout = memory_layout(program, memory)
    states = [new_state(capacity, program.state_bytes(capacity), memory.words.device) for _ in COUNTS]
    for state in states:
        state.memory[256:] = 0xFF
    memory.states.copy_(torch.tensor([state.address for state in states]))
    events, candidates = words.copy(), words.copy()
    layout.views(events).candidates[:] = np.iinfo(np.int32).min
    layout.views(candidates).events[:] = np.iinfo(np.int32).min
    layout.views(candidates).header[:, LENGTHS] = 99
    memory.words.copy_(torch.from_numpy(events))
    program.encode(memory)
    memory.x.fill_(float("nan"))
    memory.words.copy_(torch.from_numpy(candidates))
    program.score(memory)
    return memory.scores.cpu().clone()


def memory_layout(program: HstuProgram, memory: HstuMemory) -> PackedLayout:
    return program._spec.layout(memory.profile)


def wanted(spec: ModelSpec, words: Words, profile: Profile) -> torch.Tensor:
    model = create(spec)
    model.load_state_dict(random_weights(spec, 3))
    with torch.inference_mode():
        return activate(model.rank(unpack(torch.from_numpy(words), spec.layout(profile))), spec.tasks)


def live(scores: torch.Tensor, counts: Sequence[int] = COUNTS) -> torch.Tensor:
    return torch.cat([scores[user, :count] for user, count in enumerate(counts)])


def test_launches_agree_with_the_oracle_and_two_steps_have_the_bits_of_one(spec, precision, runtime) -> None:
    program = make_program(spec, precision, runtime)
    words = words_of(spec, PROFILE, LENGTHS_OF, COUNTS)
    got = ranked(program, memory_of(program, PROFILE), words)
    error = (live(got) - live(wanted(spec, words, PROFILE))).abs().max()
    assert error < TOLERANCE[precision.name], f"error {error}"
    two = scored_in_two(program, memory_of(program, PROFILE), words, 128)
    assert live(two).equal(live(got))
    for user, count in enumerate(COUNTS):
        assert got[user, count:].isnan().all(), "only live candidates are written"


def test_unused_slots_and_larger_states_change_no_bit(runtime) -> None:
    program = make_program(preset("tiny-hstu"), PRECISIONS["fp32"], runtime)
    words = words_of(preset("tiny-hstu"), PROFILE, LENGTHS_OF, COUNTS)
    header = preset("tiny-hstu").layout(PROFILE).views(words).header
    header[1, CANDIDATES] = header[1, LENGTHS] = 0
    got = ranked(program, memory_of(program, PROFILE), words)
    assert got[1].isnan().all()
    two = scored_in_two(program, memory_of(program, PROFILE), words, 384)
    assert two[0].equal(got[0])
    assert two[1].isnan().all()


def test_a_candidate_has_the_same_bits_in_any_order_slot_profile_and_company(spec, runtime) -> None:
    schema = msgspec.structs.replace(spec.input, max_history=140, max_candidates=80)
    spec = msgspec.structs.replace(spec, input=schema)
    program = make_program(spec, PRECISIONS["fp32"], runtime)
    words = words_of(spec, PROFILE, LENGTHS_OF, COUNTS)
    got = ranked(program, memory_of(program, PROFILE), words)
    other = Profile(users=2, history=130, candidates=70)
    moved = words_of(spec, other, ((130,), (37,)), (3, 70), seed=9)
    old, new = spec.layout(PROFILE).views(words), spec.layout(other).views(moved)
    new.header[1], new.header[1, CANDIDATES] = old.header[0], 70
    new.events[1, :, :37] = old.events[0]
    new.candidates[1, 47:] = old.candidates[0, ::-1]
    assert ranked(program, memory_of(program, other), moved)[1, 47:].flip(0).equal(got[0])


def test_embeddings_that_the_host_looked_up(runtime) -> None:
    spec = preset("tiny-hstu")
    items = ItemTable(vocabulary=50, dim=18, lookup="host")
    spec = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, item_id=items))
    program = make_program(spec, PRECISIONS["fp32"], runtime)
    words = words_of(spec, PROFILE, LENGTHS_OF, COUNTS)
    got = ranked(program, memory_of(program, PROFILE), words)
    model = create(spec)
    model.load_state_dict({n: w for n, w in random_weights(spec, 3).items() if n in model.state_dict()})
    with torch.inference_mode():
        want = activate(model.rank(unpack(torch.from_numpy(words), spec.layout(PROFILE))), spec.tasks)
    assert (live(got) - live(want)).abs().max() < TOLERANCE["fp32"]


def test_kernels_are_known_without_a_device_and_have_names_of_their_own(spec) -> None:
    program = HstuProgram(spec, PRECISIONS["bf16"], NoRuntime(), None, frozenset(("stack", "feed-forward")), 90)
    names = [kernel.name for kernel in program.kernels()]
    assert len(set(names)) == len(names) == 8


def test_what_cannot_be_is_told() -> None:
    spec = preset("tiny-hstu")
    with pytest.raises(BackendUnavailable, match="tokens"):
        HstuProgram(spec, PRECISIONS["bf16"], NoRuntime(), None, frozenset(("tokens",)), 90)
    wide = msgspec.structs.replace(spec, hstu=msgspec.structs.replace(spec.hstu, attention_dim=300))
    with pytest.raises(BackendUnavailable, match="300"):
        HstuProgram(wide, PRECISIONS["bf16"], NoRuntime(), None, frozenset(), 90)


class NoRuntime:
    device = torch.device("meta")

    def launch(self, *arguments: object) -> None:
        raise AssertionError("nothing is launched")


def test_a_state_has_the_size_that_is_told(spec) -> None:
    program = HstuProgram(spec, PRECISIONS["fp16"], NoRuntime(), None, frozenset(), 90)
    state = new_state(128, program.state_bytes(128), torch.device("cpu"))
    assert isinstance(state, DeviceState)
    assert state.nbytes >= 256 + 3 * 2 * (10 + 14) * 128 * 2
