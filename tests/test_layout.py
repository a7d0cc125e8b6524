"""The packed buffer: sections that do not overlap, fill the buffer and start on cache lines."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flame.layout import PackedLayout, RecordLayout
from flame.schema import Field, InputSchema, ItemTable, SequenceSpec

small = st.integers(0, 5)


def record(lookup: str, sequences: int, dense: int) -> RecordLayout:
    schema = InputSchema(
        ItemTable(100, 8, lookup=lookup),  # type: ignore[arg-type]
        10,
        10,
        3,
        item=(Field("genre", "int32", (2,), 5), *(Field(f"d{i}", "float32") for i in range(dense))),
        user=(Field("age", "float32"),),
        context=(Field("hour", "int32", (), 24),),
        sequences=tuple(SequenceSpec(str(i)) for i in range(sequences)),
    )
    return RecordLayout.of(schema)


@given(st.sampled_from(["host", "device"]), st.integers(1, 3), small, st.integers(1, 4), small, st.integers(1, 9))
def test_sections_are_disjoint_aligned_and_inside(
    lookup: str, sequences: int, dense: int, users: int, events: int, candidates: int
) -> None:
    layout = PackedLayout(record(lookup, sequences, dense), users, events, candidates)
    words = np.zeros(layout.words, np.int32)
    for number, view in enumerate(layout.views(words), start=1):
        assert np.shares_memory(view, words) or view.size == 0
        assert not view.any()
        view[...] = number
    assert layout.events_start % 16 == layout.candidates_start % 16 == layout.words % 16 == 0
    assert sum(int((words == number).sum()) for number in (1, 2, 3)) == sum(v.size for v in layout.views(words))


def test_a_candidate_range_is_one_run_of_bytes() -> None:
    layout = PackedLayout(record("device", 2, 3), users=2, events=4, candidates=7)
    candidates = layout.views(np.zeros(layout.words, np.int32)).candidates
    assert candidates[1, 2:6].flags.c_contiguous


def test_host_embeddings_widen_both_records() -> None:
    host, device = record("host", 1, 2), record("device", 1, 2)
    assert host.event_words - device.event_words == host.candidate_words - device.candidate_words == 8
    assert host.event_embedding + 8 == host.event_words
    assert host.candidate_embedding + 8 == host.candidate_words


def test_the_header_holds_lengths_user_and_context() -> None:
    layout = record("device", 3, 0)
    assert (layout.user_start, layout.context_start, layout.header_words) == (5, 6, 7)
    assert layout.prefix is None


def test_a_header_tells_a_prefix_where_positions_count_from_the_oldest_event() -> None:
    schema = InputSchema(ItemTable(9, 4), max_history=8, max_candidates=4, actions=2, positions="oldest")
    layout = RecordLayout.of(schema)
    assert (layout.lengths, layout.prefix, layout.user_start, layout.header_words) == (slice(2, 3), 3, 4, 4)
