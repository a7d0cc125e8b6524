"""Import of items or users: a table of ids and fields becomes a file of rows and an index."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from flame.errors import SchemaError
from flame.features.id_index import DuplicateId, IdIndex
from flame.features.importer.columns import RowReader
from flame.features.importer.tables import Batch, Progress, Table
from flame.records import Ids
from flame.schema import RowLayout

ID = "id"
"""The column of the ids in the tables of items and of users."""


def import_rows(
    table: Table, layout: RowLayout, stage: str, rows_path: Path, progress: Progress | None
) -> tuple[Ids, Counter[str]]:
    """Writes the rows of `table` to a new file; returns the ids in its order and how often each default was used.

    Holds the ids in memory and a batch of rows. Raises `SchemaError` that names file, row and column.
    """
    reader = RowReader.of(table, layout, ID)
    ids, batches = [np.zeros(0, np.int64)], []
    with rows_path.open("xb") as file:
        for batch in table.batches(stage, reader.integers, progress):
            batch_ids, rows = reader.rows(batch)
            rows.tofile(file)
            ids.append(batch_ids)
            batches.append(Batch(batch.path, batch.first, None))
    return _unique(ids, batches), +reader.defaults


def _unique(ids: list[Ids], batches: list[Batch]) -> Ids:
    """All ids in one array; raises `SchemaError` with both places of one that comes twice."""
    together = np.concatenate(ids)
    try:
        IdIndex.build(together)
    except DuplicateId as error:
        ends = np.cumsum([len(part) for part in ids])
        first, second = (int(np.searchsorted(ends, place, side="right")) for place in (error.first, error.second))
        earlier = batches[first - 1]
        row = earlier.first + error.first - ends[first - 1] + 1
        raise batches[second - 1].wrong(
            int(error.second - ends[second - 1]), ID, f"id {error.value} is already in {earlier.path.name}, row {row}"
        ) from None
    return together


def write_default_rows(layout: RowLayout, count: int, rows_path: Path) -> None:
    """Appends `count` rows that hold the default of every field."""
    with rows_path.open("ab") as file:
        np.repeat(layout.default_row()[None], count, 0).tofile(file)


def need_table(path: Path | None, layout: RowLayout, what: str) -> Table | None:
    """The table at `path`; None is only right for a model without such fields. Raises `SchemaError`."""
    if path is None:
        if layout.fields:
            raise SchemaError(f"the model has {what} fields {list(layout.offsets)}: give a table of {what}s")
        return None
    return Table(path)
