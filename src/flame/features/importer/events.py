"""Import of events: rows of user, item, action and timestamp become one run per user, oldest first.

The table is read twice: once to check every value and count the events of each user, once to put each event where its
user's run stands in the mapped output. Memory grows with users, not with events.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flame.features.id_index import IdIndex
from flame.features.importer.columns import expect_columns, integer_column
from flame.features.importer.tables import Batch, Progress, Table
from flame.records import Ids

COLUMNS = ("user", "item", "action", "timestamp")
STORED = ("items", "actions", "timestamps")

_CHUNK_EVENTS = 2_000_000
_MERGE_AT = 4_000_000


class UserCounts:
    """Events by user, gathered from batches."""

    def __init__(self) -> None:
        self._users = [np.zeros(0, np.int64)]
        self._counts = [np.zeros(0, np.int64)]
        self._held = 0

    def add(self, users: Ids) -> None:
        """Counts one event of each of `users`."""
        unique, counts = np.unique(users, return_counts=True)
        self._users.append(unique)
        self._counts.append(counts)
        self._held += len(unique)
        if self._held > _MERGE_AT:
            users, counts = self.merged()
            self._users, self._counts, self._held = [users], [counts], 0

    def merged(self) -> tuple[Ids, NDArray[np.int64]]:
        """The users in ascending order, and their events."""
        users, places = np.unique(np.concatenate(self._users), return_inverse=True)
        counts = np.zeros(len(users), np.int64)
        np.add.at(counts, places, np.concatenate(self._counts))
        return users, counts


def count_events(table: Table, actions: int, progress: Progress | None) -> tuple[Ids, NDArray[np.int64]]:
    """Checks every event; returns the users that have some, ascending, and how many. Raises `SchemaError`."""
    expect_columns(table, COLUMNS)
    counts = UserCounts()
    for batch in table.batches("events, first pass", COLUMNS, progress):
        for name in COLUMNS:
            integer_column(batch, name)
        _check_range(batch, "action", actions)
        _check_range(batch, "timestamp", None)
        counts.add(integer_column(batch, "user"))
    return counts.merged()


def write_events(
    table: Table, users: IdIndex, offsets: NDArray[np.int64], known: IdIndex, folder: Path, progress: Progress | None
) -> int:
    """Writes the three columns of events, user i at `offsets[i]` to `offsets[i + 1]`, sorted by time within a user.

    Events of one user at the same time keep their order in the table. Returns how many events have an item that
    `known` does not have.
    """
    columns = [_output(folder / f"events.{name}", int(offsets[-1])) for name in STORED]
    cursor, strangers = offsets[:-1].copy(), 0
    for batch in table.batches("events, second pass", COLUMNS, progress):
        places = _places(users.find(integer_column(batch, "user")), cursor)
        for column, name in zip(columns, ("item", "action", "timestamp"), strict=True):
            column[places] = integer_column(batch, name)
        strangers += int((known.find(integer_column(batch, "item")) < 0).sum())
    _sort_by_time(columns, offsets)
    return strangers


def _check_range(batch: Batch, name: str, limit: int | None) -> None:
    values = integer_column(batch, name)
    wrong = values < 0 if limit is None else (values < 0) | (values >= limit)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        reason = "is negative" if limit is None else f"is not in [0, {limit})"
        raise batch.wrong(row, name, f"{values[row]} {reason}")


def _output(path: Path, events: int) -> Ids:
    if not events:
        path.touch()
        return np.zeros(0, np.int64)
    return np.memmap(path, np.int64, "w+", shape=(events,))


def _places(users: NDArray[np.int64], cursor: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each event of a batch goes; moves the cursor of its user on."""
    order = np.argsort(users, kind="stable")
    unique, starts, counts = np.unique(users[order], return_index=True, return_counts=True)
    places = np.empty(len(users), np.int64)
    places[order] = np.repeat(cursor[unique] - starts, counts) + np.arange(len(users))
    cursor[unique] += counts
    return places


def _sort_by_time(columns: list[Ids], offsets: NDArray[np.int64]) -> None:
    """Sorts the events of every user, in chunks of whole users."""
    first = 0
    while first < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[first] + _CHUNK_EVENTS, side="right")) - 1
        end = max(end, first + 1)
        events = slice(int(offsets[first]), int(offsets[end]))
        owners = np.repeat(np.arange(first, end), np.diff(offsets[first : end + 1]))
        order = np.lexsort((columns[2][events], owners))
        for column in columns:
            column[events] = column[events][order]
        first = end
