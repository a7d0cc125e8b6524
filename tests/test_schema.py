"""Fields, rows and sequences of a model's input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.errors import SchemaError
from flame.schema import Field, InputSchema, ItemTable, RowLayout, SequenceSpec

TABLE = ItemTable(vocabulary=100, dim=8)


def test_integers_come_before_floats_and_keep_their_order() -> None:
    row = RowLayout(
        [
            Field("price", "float32"),
            Field("genre", "int32", (3,), 10),
            Field("vector", "float32", (2, 2)),
            Field("year", "int32", (), 9),
        ]
    )
    assert row.offsets == {"genre": 0, "year": 3, "price": 4, "vector": 5}
    assert (row.words, row.integer_words, row.float_words) == (9, 4, 5)


def test_the_default_row_holds_every_default_as_its_own_type() -> None:
    row = RowLayout([Field("price", "float32", (2,), default=1.5), Field("year", "int32", (), 9, default=4)])
    words = row.default_row()
    assert words[0] == 4
    assert words[1:].view(np.float32).tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Field("a", "int32"),
        lambda: Field("a", "float32", (), 3),
        lambda: Field("a", "int32", (), 3, default=3),
        lambda: Field("a", "int32", (), 3, default=1.5),
        lambda: Field("a", "float32", default=float("nan")),
        lambda: Field("a", "float32", default=-1e39),
        lambda: RowLayout([Field("a", "int32", (), 2**30), Field("b", "int32", (), 2**30)]),
        lambda: RowLayout([Field("a", "float32"), Field("a", "float32")]),
        lambda: SequenceSpec("s", "part", part=2, of=2),
        lambda: SequenceSpec("s", "all", part=0, of=2),
        lambda: SequenceSpec("s", "actions", of=2, actions=(1,)),
        lambda: SequenceSpec("s", "actions"),
        lambda: SequenceSpec("s", "all", actions=(1,)),
        lambda: InputSchema(TABLE, 4, 4, 2, sequences=(SequenceSpec("s", "actions", actions=(2,)),)),
        lambda: InputSchema(TABLE, 4, 4, 2, sequences=()),
        lambda: InputSchema(TABLE, 4, 4, 2, sequences=(SequenceSpec("s"), SequenceSpec("s", limit=2))),
    ],
)
def test_contradictions_are_refused(make: object) -> None:
    with pytest.raises(SchemaError):
        make()  # type: ignore[operator]


@given(st.integers(0, 3000), st.integers(1, 5))
def test_parts_hold_the_whole_history_and_little_more(history: int, of: int) -> None:
    parts = tuple(SequenceSpec(f"p{part}", "part", part=part, of=of) for part in range(of))
    schema = InputSchema(TABLE, 3000, 4, 2, sequences=parts)
    assert history <= of * schema.sequence_capacity(history) < history + of


def test_a_limit_bounds_the_capacity() -> None:
    assert SequenceSpec("s", limit=7).capacity(100) == 7
    assert SequenceSpec("s", limit=7).capacity(3) == 3
