"""Columns of a batch as numpy arrays, with every wrong value named by file, row and column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from flame.errors import SchemaError
from flame.features.importer.tables import Batch, Table
from flame.features.rows import BadValue, field_words
from flame.layout import Words
from flame.records import Ids
from flame.schema import Field, RowLayout


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads a table of an id column and the columns of a row layout; made by `of`, which checks the names.

    A field is a column of its name (a list column if it has a shape), or columns `name_0`, `name_1`, ... of its
    elements in row-major order. An empty value is the field's default; `defaults` counts them by field.
    """

    layout: RowLayout
    id_column: str
    sources: dict[str, list[str]]
    defaults: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, table: Table, layout: RowLayout, id_column: str) -> RowReader:
        """A reader for `table`. Raises `SchemaError` for a missing or an unknown column."""
        if id_column in layout.offsets:
            raise SchemaError(f"a field cannot be named {id_column!r}: that is the column of the ids")
        sources = {entry.name: _source(table, entry) for entry in layout.fields}
        expect_columns(table, [id_column, *(name for names in sources.values() for name in names)])
        return cls(layout, id_column, sources)

    @property
    def integers(self) -> list[str]:
        """The columns that hold integers."""
        names = [name for entry in self.layout.fields if entry.vocabulary for name in self.sources[entry.name]]
        return [self.id_column, *names]

    def rows(self, batch: Batch) -> tuple[Ids, Words]:
        """Ids `[n]` and rows `[n, words]` of a batch. Raises `SchemaError` that names the value."""
        rows = np.empty((batch.data.num_rows, self.layout.words), np.int32)
        for entry in self.layout.fields:
            start = self.layout.offsets[entry.name]
            rows[:, start : start + entry.words] = self._words(batch, entry)
        return integer_column(batch, self.id_column), rows

    def _words(self, batch: Batch, entry: Field) -> Words:
        names = self.sources[entry.name]
        values = np.empty((batch.data.num_rows, entry.words), np.float64 if entry.vocabulary is None else np.int64)
        if len(names) == entry.words:
            for place, name in enumerate(names):
                values[:, place] = self._scalars(batch, entry, name)
        else:
            values[:] = self._lists(batch, entry, names[0])
        try:
            return field_words(entry, values)
        except BadValue as error:
            row = error.row or 0
            name = names[_wrong_word(entry, values[row])] if len(names) == entry.words else names[0]
            raise batch.wrong(row, name, error.reason) from None

    def _scalars(self, batch: Batch, entry: Field, name: str) -> NDArray[Any]:
        column = batch.data.column(name)
        if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            return self._lists(batch, entry, name)[:, 0]
        self.defaults[entry.name] += column.null_count
        return _numbers(batch, name, column, entry.default, entry.vocabulary is not None)

    def _lists(self, batch: Batch, entry: Field, name: str) -> NDArray[Any]:
        """A list column as `[rows, words]`."""
        column = batch.data.column(name)
        if not hasattr(column, "flatten") or not hasattr(column.type, "value_type"):
            raise batch.wrong(0, name, f"{column.type} where a list of {entry.words} values is needed")
        lengths = pc.fill_null(pc.list_value_length(column), entry.words).to_numpy()
        if (lengths != entry.words).any():
            row = int(np.flatnonzero(lengths != entry.words)[0])
            raise batch.wrong(row, name, f"{lengths[row]} values where {entry.words} are needed")
        given = np.asarray(column.is_valid())
        self.defaults[entry.name] += len(given) - int(given.sum())
        flat = column.flatten()
        if flat.null_count:
            row = int(np.flatnonzero(given)[np.flatnonzero(np.asarray(flat.is_null()))[0] // entry.words])
            raise batch.wrong(row, name, "a value within the list is empty")
        values = np.full((len(given), entry.words), entry.default)
        whole = entry.vocabulary is not None
        values = values.astype(np.int64) if whole else values
        values[given] = _numbers(batch, name, flat, entry.default, whole).reshape(-1, entry.words)
        return values


def integer_column(batch: Batch, name: str) -> Ids:
    """A column of int64 without empty values; timestamps become seconds. Raises `SchemaError`."""
    column = batch.data.column(name)
    if column.null_count:
        raise batch.wrong(int(np.flatnonzero(np.asarray(column.is_null()))[0]), name, "the value is empty")
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.timestamp("s"), safe=False).cast(pa.int64())
    return _numbers(batch, name, column, 0, True)


def expect_columns(table: Table, names: Sequence[str]) -> None:
    """Raises `SchemaError` unless `table` has exactly these columns."""
    file = table.files[0].name
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise SchemaError(f"{file}: column {missing[0]!r} is missing; it has {table.columns}")
    unknown = [name for name in table.columns if name not in names]
    if unknown:
        raise SchemaError(f"{file}: column {unknown[0]!r} is unknown to the model; expected are {list(names)}")


def _source(table: Table, entry: Field) -> list[str]:
    elements = [f"{entry.name}_{place}" for place in range(entry.words)]
    spread = entry.shape and entry.name not in table.columns and elements[0] in table.columns
    return elements if spread else [entry.name]


def _numbers(batch: Batch, name: str, column: Any, default: float, whole: bool) -> NDArray[Any]:
    """A flat column as int64 or float64, null as `default`."""
    if pa.types.is_null(column.type):
        column = column.cast(pa.int64() if whole else pa.float64())
    right = pa.types.is_integer(column.type) or (not whole and pa.types.is_floating(column.type))
    if not right:
        raise batch.wrong(0, name, f"{column.type} values where {'integers' if whole else 'numbers'} are needed")
    if whole and pa.types.is_uint64(column.type) and (pc.max(column).as_py() or 0) > 2**63 - 1:
        values = pc.fill_null(column, 0).to_numpy()
        raise batch.wrong(int(values.argmax()), name, f"{values.max()} does not fit into 64 bits with a sign")
    values = pc.fill_null(column.cast(pa.int64() if whole else pa.float64()), int(default) if whole else default)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _wrong_word(entry: Field, values: NDArray[Any]) -> int:
    """The first element of one row that its field cannot hold."""
    if entry.vocabulary is not None:
        right = (values >= 0) & (values < entry.vocabulary)
    else:
        right = np.abs(values) <= np.finfo(np.float32).max
    return int(np.flatnonzero(~right)[0])
