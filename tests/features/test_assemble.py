"""Assembly against a slow, plain description of the packed buffer, for all strategies and odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from flame.errors import SchemaError
from flame.features.assemble import Assembler, Draft
from flame.features.kernels.codes import EXPIRED, PENDING, ROW, UNKNOWN
from flame.features.kernels.hashing import mix64
from flame.features.mapping import table_rows
from flame.layout import LENGTHS, SCENARIO
from flame.records import Features, History, RankRequest
from flame.schema import InputSchema, ItemTable, SequenceSpec

GARBAGE = np.float32(np.nan).view(np.int32)

SEQUENCES = st.lists(
    st.one_of(
        st.builds(SequenceSpec, name=st.just("all"), limit=st.one_of(st.none(), st.integers(1, 9))),
        st.integers(1, 5).flatmap(
            lambda of: st.builds(
                SequenceSpec,
                name=st.just("part"),
                kind=st.just("part"),
                of=st.just(of),
                part=st.integers(0, of - 1),
                limit=st.one_of(st.none(), st.integers(1, 9)),
            )
        ),
        st.builds(
            SequenceSpec,
            name=st.just("actions"),
            kind=st.just("actions"),
            actions=st.sets(st.integers(0, 3), min_size=1).map(tuple),
            limit=st.one_of(st.none(), st.integers(1, 9)),
        ),
    ),
    min_size=1,
    max_size=4,
).map(lambda drawn: [replace(sequence, name=f"{sequence.name} {index}") for index, sequence in enumerate(drawn)])


def slow_events(sequence: SequenceSpec, history: History) -> list[int]:
    """What a sequence takes, by the words of its docstring."""
    count = len(history.items)
    events = list(range(count))
    if sequence.kind == "part":
        events = events[sequence.part * count // sequence.of : (sequence.part + 1) * count // sequence.of]
    if sequence.kind == "actions":
        events = [event for event in events if history.actions[event] in sequence.actions]
    return events if sequence.limit is None else events[-sequence.limit :]


def slow_row(item: int, table: ItemTable) -> int:
    if item <= 0:
        return 0
    if table.mapping == "direct":
        return item if item < table.vocabulary else 0
    word, mask = (item + 0x9E3779B97F4A7C15) & (2**64 - 1), 2**64 - 1
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return 1 + (word ^ (word >> 31)) % (table.vocabulary - 1)


def item_rows(items: NDArray[np.int64], words: int) -> NDArray[np.int32]:
    return ((items[:, None] * 31 + np.arange(words)) % 1_000_003).astype(np.int32)


def bring(draft: Draft, words: int) -> None:
    """Plays the cache: a row for every slot."""
    for item, offset in zip(draft.slots.ids, draft.slots.offsets, strict=True):
        draft.words[offset : offset + words] = item_rows(np.array([item]), words)[0]
    draft.status[:] = ROW


def assemble(
    schema: InputSchema, request: RankRequest, history: History, table: NDArray[np.float32] | None = None
) -> Features:
    assembler = Assembler(schema, table)
    layout = assembler.layout(len(history.items), len(request.candidates))
    words = np.full(layout.words, GARBAGE)
    draft = assembler.draft(request, schema.user_row.default_row(), history, layout, words)
    bring(draft, schema.item_row.words)
    return assembler.finish(draft, False)[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequences=SEQUENCES,
    events=st.sampled_from([0, 1, 2, 3, 7, 20, 63, 64]),
    candidates=st.sampled_from([1, 2, 31, 200]),
    lookup=st.sampled_from(["host", "device"]),
    mapping=st.sampled_from(["direct", "hash"]),
    seed=st.integers(0, 1000),
)
def test_the_buffer_is_what_the_layout_describes(
    schema_of: Any, history_of: Any, sequences: Any, events: int, candidates: int, lookup: Any, mapping: Any, seed: int
) -> None:
    random = np.random.default_rng(seed)
    item_table = ItemTable(50, 8, mapping=mapping, lookup=lookup)
    schema = schema_of(item_id=item_table, sequences=tuple(sequences))
    history = history_of(events, 4, seed, items=80)
    wanted = random.integers(-5, 80, candidates)
    table = random.random((50, 8), np.float32) if lookup == "host" else None
    features = assemble(schema, RankRequest(user=1, candidates=wanted, scenario=2), history, table)
    header, records, slots = features.layout.views(features.words)
    width = schema.item_row.words

    assert header[0, SCENARIO] == 2
    assert header[0, 1] == candidates
    assert tuple(header[0, LENGTHS : LENGTHS + len(sequences)]) == features.lengths
    for place, sequence in enumerate(sequences):
        chosen = slow_events(sequence, history)
        assert features.lengths[place] == len(chosen)
        for slot, event in enumerate(chosen):
            record, row = records[0, place, slot], slow_row(int(history.items[event]), item_table)
            age = history.timestamps[-1] - history.timestamps[event]
            assert record[:3].tolist() == [row, history.actions[event], age]
            np.testing.assert_array_equal(record[3 : 3 + width], item_rows(history.items[event : event + 1], width)[0])
            if table is not None:
                np.testing.assert_array_equal(record[3 + width :].view(np.float32), table[row])
        assert (records[0, place, len(chosen) :] == GARBAGE).all(), "written beyond the length"
    for slot, item in enumerate(wanted):
        row = slow_row(int(item), item_table)
        assert slots[0, slot, 0] == row
        np.testing.assert_array_equal(slots[0, slot, 1 : 1 + width], item_rows(wanted[slot : slot + 1], width)[0])
        if table is not None:
            np.testing.assert_array_equal(slots[0, slot, 1 + width :].view(np.float32), table[row])


def test_user_and_context_rows_stand_in_the_header(schema: InputSchema, history_of: Any) -> None:
    assembler = Assembler(schema)
    request = RankRequest(user=1, candidates=np.ones(1, np.int64), context={"place": [0.5, 2.5], "hour": 23})
    layout = assembler.layout(0, 1)
    words = np.full(layout.words, GARBAGE)
    user_row = np.arange(1, 5, dtype=np.int32)
    draft = assembler.draft(request, user_row, history_of(0, 4, 0), layout, words)
    header = layout.views(draft.words).header[0]
    record = layout.record
    np.testing.assert_array_equal(header[record.user_start : record.context_start], user_row)
    assert header[record.context_start] == 23
    assert header[record.context_start + 1 :].view(np.float32).tolist() == [0.5, 2.5]
    plain = RankRequest(user=1, candidates=np.ones(1, np.int64))
    draft = assembler.draft(plain, user_row, history_of(0, 4, 0), layout, words)
    context = layout.views(draft.words).header[0, record.context_start :]
    np.testing.assert_array_equal(context, schema.context_row.default_row())


def test_each_slot_is_counted_once_by_its_worst_state(schema: InputSchema, history_of: Any) -> None:
    assembler = Assembler(schema)
    candidates = np.array([1, 2, 3, 4, 5, 1000, 0], np.int64)
    request = RankRequest(user=1, candidates=candidates)
    layout = assembler.layout(0, 7)
    words = np.full(layout.words, GARBAGE)
    draft = assembler.draft(request, schema.user_row.default_row(), history_of(0, 4, 0), layout, words)
    bring(draft, schema.item_row.words)
    draft.status[:] = [ROW, ROW | EXPIRED | PENDING, PENDING, 0, UNKNOWN | EXPIRED, ROW, UNKNOWN]
    features, fresh = assembler.finish(draft, True)
    counts = features.counts
    assert (fresh, counts.stale, counts.missing, counts.unknown, counts.unknown_user) == (1, 1, 2, 3, True)
    assert counts.degraded
    rows = layout.views(features.words).candidates[0, :, 1:]
    default = schema.item_row.default_row()
    for place in (2, 3, 4, 6):
        np.testing.assert_array_equal(rows[place], default)
    for place in (0, 1, 5):
        np.testing.assert_array_equal(rows[place], item_rows(candidates[place : place + 1], len(default))[0])


def test_an_age_beyond_32_bits_is_the_largest_there_is(schema_of: Any) -> None:
    schema = schema_of(sequences=(SequenceSpec("all"),))
    history = History(np.ones(2, np.int64), np.zeros(2, np.int64), np.array([0, 2**40], np.int64))
    features = assemble(schema, RankRequest(user=1, candidates=np.ones(1, np.int64)), history)
    assert features.layout.views(features.words).events[0, 0, :, 2].tolist() == [2**31 - 1, 0]


def test_inputs_may_be_read_only_or_strided(schema: InputSchema, history_of: Any) -> None:
    history = history_of(40, 4, 3)
    candidates = np.arange(1, 21, dtype=np.int64)
    plain = assemble(schema, RankRequest(user=1, candidates=candidates), history)
    frozen = History(*(np.frombuffer(column.tobytes(), np.int64) for column in _columns(history)))
    doubled = History(*(np.repeat(column, 2)[::2] for column in _columns(history)))
    for odd, ids in ((frozen, np.frombuffer(candidates.tobytes(), np.int64)), (doubled, np.repeat(candidates, 2)[::2])):
        other = assemble(schema, RankRequest(user=1, candidates=ids), odd)
        np.testing.assert_array_equal(other.words[: len(plain.words)], plain.words)


def _columns(history: History) -> tuple[NDArray[np.int64], ...]:
    return history.items, history.actions, history.timestamps


@pytest.mark.parametrize(
    "table", [None, np.zeros((50, 7), np.float32), np.zeros((49, 8), np.float32), np.zeros((50, 8), np.float64)]
)
def test_a_host_look_up_needs_its_table(schema_of: Callable[..., InputSchema], table: Any) -> None:
    with pytest.raises(SchemaError, match=r"needs item embeddings float32 \[50, 8\], got"):
        Assembler(schema_of(item_id=ItemTable(50, 8, lookup="host")), table)


@given(
    ids=st.lists(st.one_of(st.integers(-3, 60), st.integers(-(2**63), 2**63 - 1)), max_size=30),
    vocabulary=st.sampled_from([2, 3, 50, 2**31 - 1]),
    mapping=st.sampled_from(["direct", "hash"]),
)
@settings(deadline=None)
def test_item_ids_map_as_stated(ids: list[int], vocabulary: int, mapping: Any) -> None:
    table = ItemTable(vocabulary, 4, mapping=mapping)
    rows = table_rows(np.array(ids, np.int64), table)
    assert rows.tolist() == [slow_row(item, table) for item in ids]


def test_the_hash_that_models_are_trained_with_never_changes() -> None:
    """The published first outputs of SplitMix64 from seed 0, whose state grows by the step that `mix64` adds."""
    step = 0x9E3779B97F4A7C15
    states = [0, step - 2**64]
    assert [int(mix64(state)) for state in states] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    rows = table_rows(np.array([1, 2, 42, 2**62], np.int64), ItemTable(1_000_003, 4, mapping="hash"))
    assert rows.tolist() == [868848, 518615, 927626, 535082]
