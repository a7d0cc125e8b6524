"""A feature store in the memory of this process: for a program that brings its own data, and for small models."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flame.errors import SchemaError, StoreUnavailable
from flame.features.id_index import IdIndex
from flame.features.kernels.id_index import take
from flame.features.rows import pack_rows
from flame.features.store.base import ABSENT, FOUND, Answers, FeatureStore, UserRecord
from flame.features.store.history import check_types, check_values, newest
from flame.layout import Words
from flame.records import History, Ids
from flame.schema import InputSchema


@dataclass(frozen=True, slots=True)
class _Items:
    """One version of all item rows; replaced as a whole, so that readers need no lock."""

    ids: Ids
    rows: Words
    index: IdIndex


class MemoryStore(FeatureStore):
    """Starts empty; `put_items` and `put_users` may be called at any time, from any thread."""

    def __init__(self, schema: InputSchema) -> None:
        self._schema = schema
        self._item_row = schema.item_row
        self._user_row = schema.user_row
        none = np.zeros(0, np.int64)
        self._items: _Items | None = _Items(none, np.zeros((0, self._item_row.words), np.int32), IdIndex.build(none))
        self._users: dict[int, UserRecord] = {}
        self._lock = threading.Lock()

    def put_items(self, ids: Ids, columns: Mapping[str, NDArray[np.generic]]) -> None:
        """Adds or replaces items: `ids` `[n]` and a column `[n, *shape]` per field, all default where one is absent.

        Costs a copy of the whole store: put in batches. Raises `SchemaError` that names field, row and value.
        """
        new = np.array(ids, np.int64)
        unique = np.unique(new)
        if len(unique) != len(new):
            raise SchemaError(f"put_items: {len(new) - len(unique)} of {len(new)} ids are given more than once")
        rows = pack_rows(self._item_row, columns, len(new))
        with self._lock:
            old = self._open_items()
            kept = IdIndex.build(new).find(old.ids) < 0
            all_ids = np.concatenate([old.ids[kept], new])
            self._items = _Items(all_ids, np.concatenate([old.rows[kept], rows]), IdIndex.build(all_ids))

    def put_users(
        self,
        users: Ids,
        columns: Mapping[str, NDArray[np.generic]],
        histories: Mapping[int, History] | None = None,
    ) -> None:
        """Adds or replaces users: `users` `[n]`, a column per user field, and histories by user, empty where absent.

        Raises `SchemaError` that names what is wrong.
        """
        rows = pack_rows(self._user_row, columns, len(users))
        given = histories or {}
        strangers = sorted(set(given) - {int(user) for user in users})
        if strangers:
            raise SchemaError(f"put_users: histories of users that are not put: {strangers[:5]}")
        records = {
            int(user): UserRecord(row, self._checked(int(user), given.get(int(user))))
            for user, row in zip(users, rows, strict=True)
        }
        with self._lock:
            self._users = self._users | records

    def items(self, ids: Ids, rows: Words, answers: Answers, deadline: float | None) -> None:
        """See `FeatureStore.items`; takes microseconds, so the deadline is not looked at."""
        items = self._open_items()
        assert rows.shape == (len(ids), self._item_row.words), "the store has rows of another schema"
        take(items.rows, items.index.find(ids), rows, answers, FOUND, ABSENT)

    def user(self, user: int, events: int, deadline: float | None) -> UserRecord | None:
        """See `FeatureStore.user`."""
        self._open_items()
        record = self._users.get(user)
        return record and UserRecord(record.row, newest(record.history, events))

    def close(self) -> None:
        """See `FeatureStore.close`."""
        self._items = None
        self._users = {}

    def _open_items(self) -> _Items:
        if self._items is None:
            raise StoreUnavailable("the memory store is closed")
        return self._items

    def _checked(self, user: int, history: History | None) -> History:
        if history is None:
            empty = np.zeros(0, np.int64)
            return History(empty, empty, empty)
        try:
            check_types(history)
            check_values(history, self._schema.actions)
        except ValueError as error:
            raise SchemaError(f"history of user {user}: {error}") from None
        return history
