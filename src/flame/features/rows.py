"""Feature values as row words: every value that enters, by import, by `put_items` or in a request, passes here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.errors import SchemaError
from flame.layout import Words
from flame.schema import Field, RowLayout


class BadValue(Exception):
    """A value that its field cannot hold; whoever knows file, column or request makes a `FlameError` of it.

    `row` counts from 0 within the values given; None where the values are wrong as a whole.
    """

    def __init__(self, reason: str, row: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.row = row


def field_words(field: Field, values: NDArray[Any]) -> Words:
    """Values `[rows, *field.shape]`, or `[rows, field.words]`, as words `[rows, field.words]`. Raises `BadValue`.

    Integers are taken for a dense field; floats are taken for a categorical one only if they are whole.
    """
    if values.dtype.kind not in "iuf":
        raise BadValue(f"{values.dtype} values where {field.dtype} is needed")
    if values.shape[1:] not in (field.shape, (field.words,)):
        raise BadValue(f"shape {values.shape[1:]} where {field.shape} is needed")
    flat = values.reshape(len(values), field.words)
    return _categorical(field, flat) if field.vocabulary is not None else _dense(flat)


def pack_rows(layout: RowLayout, columns: Mapping[str, NDArray[Any]], count: int) -> Words:
    """Columns by field name, each `[count, *shape]`, as rows `[count, words]`; an absent column is all default.

    Raises `SchemaError` that names the field, the row and the value.
    """
    unknown = sorted(set(columns) - set(layout.offsets))
    if unknown:
        raise SchemaError(f"there are no fields {unknown}; the schema has {list(layout.offsets)}")
    rows = np.repeat(layout.default_row()[None], count, 0)
    for field in layout.fields:
        if field.name in columns:
            start = layout.offsets[field.name]
            try:
                rows[:, start : start + field.words] = field_words(field, np.asarray(columns[field.name]))
            except BadValue as error:
                place = "" if error.row is None else f", row {error.row}"
                raise SchemaError(f"field {field.name!r}{place}: {error.reason}") from None
    return rows


def _categorical(field: Field, values: NDArray[Any]) -> Words:
    assert field.vocabulary is not None
    whole = values if values.dtype.kind in "iu" else np.floor(values)
    _check(values, (whole == values) & (values >= 0) & (values < field.vocabulary), f"[0, {field.vocabulary})")
    return values.astype(np.int32)


def _dense(values: NDArray[Any]) -> Words:
    largest = np.finfo(np.float32).max
    _check(values, np.abs(values) <= largest, "the finite float32 numbers")
    return np.ascontiguousarray(values, np.float32).view(np.int32)


def _check(values: NDArray[Any], right: NDArray[np.bool_], allowed: str) -> None:
    if not right.all():
        row, word = np.argwhere(~right)[0]
        raise BadValue(f"{values[row, word]} is not in {allowed}", int(row))
