"""Values become row words only if their field can hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flame.errors import SchemaError
from flame.features.rows import pack_rows
from flame.schema import InputSchema


def test_columns_lie_where_the_layout_says(schema: InputSchema, columns_of: Callable[..., Any]) -> None:
    ids = np.array([3, 9], np.int64)
    columns = columns_of(ids)
    layout = schema.item_row
    rows = pack_rows(layout, columns, 2)
    for field in layout.fields:
        start = layout.offsets[field.name]
        words = np.ascontiguousarray(rows[:, start : start + field.words]).view(np.dtype(field.dtype))
        np.testing.assert_array_equal(words, columns[field.name].reshape(2, -1))


def test_a_column_that_is_absent_is_all_default(schema: InputSchema) -> None:
    rows = pack_rows(schema.item_row, {}, 3)
    assert (rows == schema.item_row.default_row()).all()


def test_integers_make_a_dense_field_and_whole_floats_a_categorical_one(schema: InputSchema) -> None:
    rows = pack_rows(schema.item_row, {"price": np.array([3]), "year": np.array([5.0])}, 1)
    offsets = schema.item_row.offsets
    assert rows[0, offsets["price"] : offsets["price"] + 1].view(np.float32)[0] == 3.0
    assert rows[0, offsets["year"]] == 5


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("year", [1, 200], r"'year', row 1: 200 is not in \[0, 200\)"),
        ("year", [1, -1], r"'year', row 1: -1 is not in"),
        ("year", [1.0, 2.5], r"'year', row 1: 2.5 is not in"),
        ("year", [np.nan, 2.0], r"'year', row 0: nan is not in"),
        ("price", [1.0, np.nan], r"'price', row 1: nan is not in the finite"),
        ("price", [np.inf, 1.0], r"'price', row 0: inf is not in the finite"),
        ("price", [1.0, 1e39], r"'price', row 1: 1e\+39 is not in the finite"),
        ("price", ["a", "b"], "'price': <U1 values where float32"),
        ("genres", [[1, 2], [3, 4]], r"'genres': shape \(2,\) where \(3,\)"),
        ("colour", [1, 2], r"there are no fields \['colour'\]; the schema has \['genres', 'year'"),
    ],
)
def test_a_wrong_value_is_named(schema: InputSchema, column: str, values: list[Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        pack_rows(schema.item_row, {column: np.array(values)}, 2)
