"""`flame features import`: Parquet or CSV tables become the folder of a file store.

Three tables: items (column `id` and one per item field), users (the same with user fields) and events (`user`, `item`,
`action`, `timestamp` in seconds, in any order).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flame.errors import SchemaError
from flame.features.id_index import IdIndex
from flame.features.importer.events import STORED, count_events, write_events
from flame.features.importer.rows import import_rows, need_table, write_default_rows
from flame.features.importer.tables import Progress, Table
from flame.features.store.format import MANIFEST, Manifest
from flame.records import Ids
from flame.schema import InputSchema, RowLayout

__all__ = ["ImportReport", "Progress", "import_features"]


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import wrote, and what it had to fill in.

    `defaults` counts empty values that became the default of their field, by `item.<field>` and `user.<field>`;
    `users_without_row` are in the events only and have default features; `events_without_item` name an item that
    the table of items does not have.
    """

    items: int
    users: int
    events: int
    defaults: dict[str, int]
    users_without_row: int
    events_without_item: int


def import_features(
    schema: InputSchema,
    folder: Path,
    *,
    items: Path | None = None,
    users: Path | None = None,
    events: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Makes the store `folder` from tables; each is a .parquet or .csv file, or a folder of one kind of them.

    A table may be absent where the model has no such fields. `folder` appears at once and complete, or not at all;
    an existing store is replaced only with `overwrite`. Raises `SchemaError` that names file, row and column.
    """
    _check_target(folder, overwrite)
    item_table = need_table(items, schema.item_row, "item")
    user_table = need_table(users, schema.user_row, "user")
    event_table = Table(events) if events is not None else None
    with _replacing(folder) as work:
        item_ids, item_defaults = _rows(item_table, schema.item_row, "items", work, progress)
        item_index = IdIndex.build(item_ids)
        item_index.save(work / "items.slots")
        user_ids, user_defaults = _rows(user_table, schema.user_row, "users", work, progress)
        owners, counts = _count(event_table, schema, progress)
        strangers = np.setdiff1d(owners, user_ids)
        write_default_rows(schema.user_row, len(strangers), work / "users.rows")
        user_ids = np.concatenate([user_ids, strangers])
        user_index = IdIndex.build(user_ids)
        user_index.save(work / "users.slots")
        offsets = _offsets(user_index, len(user_ids), owners, counts)
        offsets.tofile(work / "users.offsets")
        without_item = _events(event_table, user_index, offsets, item_index, work, progress)
        report = ImportReport(
            items=len(item_ids),
            users=len(user_ids),
            events=int(offsets[-1]),
            defaults={f"item.{name}": count for name, count in item_defaults.items()}
            | {f"user.{name}": count for name, count in user_defaults.items()},
            users_without_row=len(strangers),
            events_without_item=without_item,
        )
        Manifest.describe(work, schema, report.items, report.users, report.events).write(work)
    return report


def _check_target(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not overwrite:
        raise SchemaError(f"{folder} exists; replace it with the option for overwriting, or import elsewhere")
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise SchemaError(f"{folder} is not a feature store (no {MANIFEST} in it) and is not overwritten")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.importing-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    work.mkdir()
    try:
        yield work
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work)
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _rows(
    table: Table | None, layout: RowLayout, what: str, work: Path, progress: Progress | None
) -> tuple[Ids, dict[str, int]]:
    path = work / f"{what}.rows"
    if table is None:
        path.touch()
        return np.zeros(0, np.int64), {}
    ids, defaults = import_rows(table, layout, what, path, progress)
    return ids, dict(defaults)


def _count(table: Table | None, schema: InputSchema, progress: Progress | None) -> tuple[Ids, NDArray[np.int64]]:
    if table is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return count_events(table, schema.actions, progress)


def _offsets(index: IdIndex, users: int, owners: Ids, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the events of each user begin, `[users + 1]`."""
    lengths = np.zeros(users, np.int64)
    lengths[index.find(owners)] = counts
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _events(
    table: Table | None,
    users: IdIndex,
    offsets: NDArray[np.int64],
    items: IdIndex,
    work: Path,
    progress: Progress | None,
) -> int:
    if table is None:
        for name in STORED:
            (work / f"events.{name}").touch()
        return 0
    return write_events(table, users, offsets, items, work, progress)
