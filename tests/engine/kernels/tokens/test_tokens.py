"""The input stage: against its definition and against the models' own, with garbage wherever nothing lives."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from flame import layout as packed
from flame.engine.backends.fused.precision import PRECISIONS, Precision
from flame.engine.inputs import unpack
from flame.engine.kernels.kernel import Runtime
from flame.engine.kernels.tokens import TokenPlaces, Tokens, TokenSizes
from flame.engine.kernels.tokens.reference import candidate_tokens, event_tokens
from flame.engine.models import Hstu, create
from flame.engine.models.input_stage import category_offsets
from flame.engine.presets import preset, random_weights
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile
from flame.schema import Field, InputSchema, ItemTable, RowLayout

HOST = ItemTable(vocabulary=50, dim=18, lookup="host")
HOST_SAME_DIM = ItemTable(vocabulary=50, dim=24, lookup="host")
MANY = (Field("tags", "int32", shape=(37,), vocabulary=9), Field("one", "int32", vocabulary=3))
TOLERANCES = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}


def with_input(name: str, **changes: object) -> ModelSpec:
    spec = preset(name)
    return msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, **changes))


def with_dim(name: str, dim: int) -> ModelSpec:
    spec = with_input(name, item_id=ItemTable(vocabulary=70, dim=dim))
    kind = "climber" if spec.climber else "hstu"
    return msgspec.structs.replace(spec, **{kind: msgspec.structs.replace(getattr(spec, kind), dim=dim)})


SPECS = {
    "projected": preset("tiny-climber"),
    "same dim, ages": preset("tiny-climber-bias"),
    "hstu": preset("tiny-hstu"),
    "host": with_input("tiny-climber", item_id=HOST),
    "host, same dim": with_input("tiny-hstu", item_id=HOST_SAME_DIM),
    "no fields": with_input("tiny-climber", item=(), user=(), context=()),
    "no fields, hstu": with_input("tiny-hstu", item=(), user=(), context=(), scenarios=1),
    "many words": with_input("tiny-climber", item=MANY),
    "wide": with_dim("tiny-hstu", 520),
    "appendable": preset("tiny-climber-appendable"),
    "appendable hstu": preset("tiny-hstu-appendable"),
    "d = 96": with_dim("tiny-climber", 96),
}


def token_sizes(spec: ModelSpec, ages: int | None) -> TokenSizes:
    schema, record, model = spec.input, spec.record, spec.climber or spec.hstu
    assert model is not None
    rows = {"item": schema.item_row, "user": schema.user_row, "context": schema.context_row}
    features: dict[str, object] = {}
    for name, row in rows.items():
        features |= _features(name, row)
    return TokenSizes(
        dim=model.dim,
        blocks=record.sequences,
        item_dim=schema.item_id.dim,
        host=schema.item_id.lookup == "host",
        actions=schema.actions,
        positions=schema.sequence_capacity(schema.max_history) + 1,
        header_words=record.header_words,
        event_words=record.event_words,
        candidate_words=record.candidate_words,
        user_start=record.user_start,
        context_start=record.context_start,
        times=spec.hstu.time_buckets if spec.hstu else 0,
        scenarios=schema.scenarios if spec.hstu else 0,
        ages=ages,
        oldest=schema.positions == "oldest",
        gaps=spec.hstu is not None and spec.hstu.times == "gap",
        prefix_word=-1 if record.prefix is None else record.prefix,
        **features,
    )


def _features(name: str, row: RowLayout) -> dict[str, object]:
    return {
        f"{name}_categories": sum(field.vocabulary or 0 for field in row.fields),
        f"{name}_offsets": tuple(category_offsets(row)),
        f"{name}_floats": row.float_words,
    }


@dataclass
class Case:
    """One launch: what it reads, and what it has written once it ran."""

    spec: ModelSpec
    lengths: list[list[int]]
    counts: list[int]
    words: Tensor
    places: TokenPlaces
    layout: packed.PackedLayout
    x: Tensor
    states: list[Tensor]


CAPACITY = 128
BODY_BEFORE_AGES = 12


def case_of(
    spec: ModelSpec,
    lengths: list[list[int]],
    counts: list[int],
    precision: Precision,
    runtime: Runtime,
    profile: Profile | None = None,
    seed: int = 0,
) -> Case:
    profile = profile or Profile(len(counts), spec.input.max_history, spec.input.max_candidates)
    layout = spec.layout(profile)
    words = torch.from_numpy(random_words(spec, layout, lengths, counts, np.random.default_rng(seed)))
    blocks, dim = spec.record.sequences, (spec.climber or spec.hstu).dim  # type: ignore[union-attr]
    events, candidates = 128, -(-profile.candidates // 64) * 64
    shape = (profile.users, blocks, events + candidates, dim)
    x = torch.full(shape, float("nan"), dtype=precision.dtype, device=runtime.device)
    size = 64 + (BODY_BEFORE_AGES // 4 + blocks) * CAPACITY
    states = [torch.full((size,), -7, dtype=torch.int32, device=runtime.device) for _ in range(profile.users)]
    for state in states:
        state[0] = CAPACITY
    places = TokenPlaces(
        profile.users, layout.events_start, layout.events, layout.candidates_start, layout.candidates, events
    )
    return Case(spec, lengths, counts, words, places, layout, x, states)


def random_case(spec: ModelSpec, precision: Precision, runtime: Runtime) -> Case:
    """A full user, one without events, one without candidates, one of odd sizes, and an unused slot."""
    most = spec.layout(Profile(5, spec.input.max_history, spec.input.max_candidates))
    capacities = [sequence.capacity(spec.input.max_history) for sequence in spec.input.sequences]
    lengths = [capacities, [0] * len(capacities), [1] * len(capacities), [min(13, most) for most in capacities]]
    assert most.events >= max(capacities)
    return case_of(spec, lengths, [23, 17, 0, 1], precision, runtime, most_profile(spec))


def most_profile(spec: ModelSpec) -> Profile:
    return Profile(5, spec.input.max_history, spec.input.max_candidates)


def own_weights(spec: ModelSpec) -> dict[str, Tensor]:
    return {name.removeprefix("input."): tensor for name, tensor in random_weights(spec, 3).items()}


def run(case: Case, runtime: Runtime, precision: Precision, what: str = "rank", ages: int | None = None) -> Tokens:
    op = Tokens(token_sizes(case.spec, ages), precision.pointer)
    weights = op.pack(own_weights(case.spec), precision.dtype, runtime.device)
    addresses = torch.tensor([state.data_ptr() for state in case.states], device=runtime.device)
    words = case.words.to(runtime.device)
    getattr(op, what)(runtime, weights, case.places, words, case.x, addresses)
    return op


def close(case: Case, events: list[list[Tensor]], candidates: list[Tensor], tolerance: float) -> None:
    """What lives is right, and what does not was not written."""
    first = case.places.event_rows
    for user, rows in enumerate(case.x.float().cpu()):
        for block, own in enumerate(rows):
            length, count = len(events[user][block]), len(candidates[user])
            torch.testing.assert_close(own[:length], events[user][block], rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(own[first : first + count], candidates[user], rtol=tolerance, atol=tolerance)
            assert own[length:first].isnan().all()
            assert own[first + count :].isnan().all()


@pytest.mark.parametrize("name", SPECS)
def test_tokens_are_those_of_the_definition(name: str, runtime: Runtime, precision: Precision) -> None:
    case = random_case(SPECS[name], precision, runtime)
    op = run(case, runtime, precision)
    weights = own_weights(case.spec)
    events = event_tokens(op.sizes, weights, case.places, case.words)
    candidates = candidate_tokens(op.sizes, weights, case.places, case.words)
    close(case, events, candidates, TOLERANCES[precision.name])


@pytest.mark.parametrize("name", [*list(SPECS)[:6], "appendable", "appendable hstu"])
def test_tokens_are_those_of_the_model(name: str, runtime: Runtime) -> None:
    spec, precision = SPECS[name], PRECISIONS["fp32"]
    case = random_case(spec, precision, runtime)
    run(case, runtime, precision)
    model = create(spec)
    weights = random_weights(spec, 3)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    inputs = unpack(case.words, case.layout)
    with torch.no_grad():
        events = model._events(inputs)[:, None] if isinstance(model, Hstu) else model.input.events(inputs)
        candidates = model._candidates(inputs) if isinstance(model, Hstu) else model.input.candidates(inputs)
    lengths = [*case.lengths, [0] * spec.record.sequences]
    live = [[events[user, block, :length] for block, length in enumerate(own)] for user, own in enumerate(lengths)]
    close(case, live, [candidates[user, :count] for user, count in enumerate([*case.counts, 0])], 1e-5)


@pytest.mark.parametrize("name", ["same dim, ages", "hstu"])
def test_lengths_and_ages_go_into_the_states(name: str, runtime: Runtime) -> None:
    spec, precision = SPECS[name], PRECISIONS["fp32"]
    case = random_case(spec, precision, runtime)
    run(case, runtime, precision, "encode", ages=BODY_BEFORE_AGES)
    blocks = spec.record.sequences
    records = case.layout.views(case.words.numpy()).events
    for user, own in enumerate([*case.lengths, [0] * blocks]):
        state = case.states[user].cpu()
        assert state[0] == CAPACITY
        assert state[1 : 1 + blocks].tolist() == own
        assert (state[1 + blocks : 64 + BODY_BEFORE_AGES // 4 * CAPACITY] == -7).all()
        ages = state[64 + BODY_BEFORE_AGES // 4 * CAPACITY :].view(blocks, CAPACITY)
        for block, length in enumerate(own):
            expected = records[user, block, :length, packed.EVENT_AGE]
            assert ages[block, :length].tolist() == expected.tolist()
            assert (ages[block, length:] == -7).all()


@pytest.mark.parametrize("name", ["projected", "hstu"])
def test_encode_and_score_write_what_rank_writes(name: str, runtime: Runtime) -> None:
    precision = PRECISIONS["fp16"]
    together, apart = (random_case(SPECS[name], precision, runtime) for _ in range(2))
    run(together, runtime, precision)
    run(apart, runtime, precision, "encode")
    first = apart.places.event_rows
    assert apart.x[:, :, first:].isnan().all()
    for state in apart.states:
        state.fill_(-9)
    run(apart, runtime, precision, "score")
    assert all((state == -9).all() for state in apart.states)
    torch.testing.assert_close(apart.x, together.x, rtol=0, atol=0, equal_nan=True)


def test_no_state_is_written_at_address_0(runtime: Runtime) -> None:
    precision = PRECISIONS["fp32"]
    case = random_case(SPECS["same dim, ages"], precision, runtime)
    op = Tokens(token_sizes(case.spec, 0), precision.pointer)
    weights = op.pack(own_weights(case.spec), precision.dtype, runtime.device)
    addresses = torch.tensor([0, case.states[1].data_ptr(), 0, 0, 0], device=runtime.device)
    op.encode(runtime, weights, case.places, case.words.to(runtime.device), case.x, addresses)
    assert case.states[1][1] == 0
    assert all((case.states[user][1:] == -7).all() for user in (0, 2, 3, 4))


@pytest.mark.parametrize("name", ["projected", "host, same dim", "hstu"])
def test_a_token_has_the_same_bits_wherever_it_stands(name: str, runtime: Runtime, precision: Precision) -> None:
    spec = SPECS[name]
    blocks = spec.record.sequences
    wide = case_of(spec, [[5] * blocks, [9] * blocks], [23, 21], precision, runtime, Profile(3, 37, 23))
    small = case_of(spec, [[9] * blocks], [4], precision, runtime, Profile(1, 20, 4), seed=1)
    source, target = (case.layout.views(case.words.numpy()) for case in (wide, small))
    target.header[0, packed.SCENARIO] = source.header[1, packed.SCENARIO]
    target.header[0, spec.record.user_start :] = source.header[1, spec.record.user_start :]
    order = [20, 3, 11, 0]
    target.candidates[0, :4] = source.candidates[1, order]
    target.events[0, :, :9] = source.events[1, :, :9]
    for case in (wide, small):
        run(case, runtime, precision)
    first = wide.places.event_rows
    assert torch.equal(small.x[0, :, :9], wide.x[1, :, :9])
    assert torch.equal(small.x[0, :, first : first + 4], wide.x[1, :, [first + slot for slot in order]])


def test_time_buckets_are_exact(runtime: Runtime) -> None:
    """At every power of two, one below and one above, up to the largest age."""
    spec, precision = SPECS["no fields, hstu"], PRECISIONS["fp32"]
    edges = [min(max(2**power + step, 0), 2**31 - 1) for power in range(32) for step in (-2, -1, 0)]
    for start in (0, len(edges) - 37):
        ages = edges[start : start + 37]
        case = case_of(spec, [[len(ages)]], [1], precision, runtime)
        case.layout.views(case.words.numpy()).events[0, 0, : len(ages), packed.EVENT_AGE] = ages
        op = run(case, runtime, precision)
        weights = own_weights(spec)
        events = event_tokens(op.sizes, weights, case.places, case.words)
        close(case, events, candidate_tokens(op.sizes, weights, case.places, case.words), 1e-5)


def test_words_lie_where_the_layout_says() -> None:
    """The kernel's own numbers for the parts of a record are the layout's."""
    assert (packed.EVENT_ITEM, packed.EVENT_ACTION, packed.EVENT_AGE, packed.EVENT_ROW) == (0, 1, 2, 3)
    assert (packed.CANDIDATE_ITEM, packed.CANDIDATE_ROW) == (0, 1)
    defaults = TokenSizes._field_defaults
    places = (packed.SCENARIO, packed.CANDIDATES, packed.LENGTHS)
    assert (defaults["scenario_word"], defaults["count_word"], defaults["lengths_word"]) == places


def test_schema_without_sequences_beyond_one(runtime: Runtime) -> None:
    """A history of nobody: no event slots at all."""
    spec = with_input("tiny-hstu", max_history=0)
    assert isinstance(spec.input, InputSchema)
    precision = PRECISIONS["fp32"]
    case = case_of(spec, [[0]], [3], precision, runtime, Profile(1, 0, 3))
    op = run(case, runtime, precision)
    weights = own_weights(spec)
    close(case, [[torch.zeros(0, 24)]], candidate_tokens(op.sizes, weights, case.places, case.words), 1e-5)
    assert case.states[0][1] == 0
