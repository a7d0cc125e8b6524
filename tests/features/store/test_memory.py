"""The memory store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flame.errors import SchemaError, StoreUnavailable
from flame.features.rows import pack_rows
from flame.features.store.memory import MemoryStore
from flame.records import History
from flame.schema import InputSchema


def ask(store: MemoryStore, schema: InputSchema, ids: list[int]) -> tuple[Any, list[int]]:
    rows = np.full((len(ids), schema.item_row.words), -9, np.int32)
    answers = np.zeros(len(ids), np.uint8)
    store.items(np.array(ids, np.int64), rows, answers, None)
    return rows, answers.tolist()


def test_rows_come_back_and_absent_items_are_told(
    schema: InputSchema, store: MemoryStore, columns_of: Callable[..., Any]
) -> None:
    rows, answers = ask(store, schema, [299, 300, 1])
    assert answers == [1, 2, 1]
    expected = pack_rows(schema.item_row, columns_of(np.array([299, 1])), 2)
    np.testing.assert_array_equal(rows[[0, 2]], expected)
    assert (rows[1] == -9).all()


def test_items_put_again_are_replaced(schema: InputSchema, store: MemoryStore, columns_of: Callable[..., Any]) -> None:
    ids = np.array([5, 1000], np.int64)
    store.put_items(ids, columns_of(ids, version=3))
    rows, answers = ask(store, schema, [5, 1000, 6])
    assert answers == [1, 1, 1]
    np.testing.assert_array_equal(rows[:2], pack_rows(schema.item_row, columns_of(ids, version=3), 2))
    np.testing.assert_array_equal(rows[2:], pack_rows(schema.item_row, columns_of(np.array([6])), 1))


def test_a_user_has_a_row_and_the_newest_events(store: MemoryStore) -> None:
    record = store.user(5, 20, None)
    everything = store.user(5, 1000, None)
    assert record is not None
    assert everything is not None
    assert record.row[0] == 5
    assert len(everything.history.items) == 50
    np.testing.assert_array_equal(record.history.items, everything.history.items[-20:])
    np.testing.assert_array_equal(record.history.timestamps, everything.history.timestamps[-20:])
    assert store.user(5, 0, None).history.items.shape == (0,)  # type: ignore[union-attr]
    assert store.user(77, 20, None) is None


def test_what_cannot_be_a_store_is_refused(schema: InputSchema) -> None:
    store = MemoryStore(schema)
    with pytest.raises(SchemaError, match="1 of 3 ids are given more than once"):
        store.put_items(np.array([1, 2, 1]), {})
    with pytest.raises(SchemaError, match=r"histories of users that are not put: \[8\]"):
        store.put_users(np.array([1]), {}, {8: History(*[np.zeros(0, np.int64)] * 3)})
    one = np.ones(1, np.int64)
    with pytest.raises(SchemaError, match=r"history of user 1: action 4 of event 0 is outside \[0, 4\)"):
        store.put_users(np.array([1]), {}, {1: History(one, one * 4, one)})
    assert store.user(1, 5, None) is None


def test_a_closed_store_says_so(schema: InputSchema, store: MemoryStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.user(1, 1, None)
    with pytest.raises(StoreUnavailable, match="closed"):
        ask(store, schema, [1])


def test_readers_see_whole_versions_while_items_are_put(schema: InputSchema, columns_of: Callable[..., Any]) -> None:
    store = MemoryStore(schema)
    ids = np.arange(100, dtype=np.int64)
    versions = [pack_rows(schema.item_row, columns_of(ids, version), 100) for version in range(20)]
    store.put_items(ids, columns_of(ids, 0))
    stop = threading.Event()
    wrong: list[int] = []

    def read() -> None:
        while not stop.is_set():
            rows, answers = ask(store, schema, ids.tolist())
            if answers != [1] * 100 or not any((rows == version).all() for version in versions):
                wrong.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(20):
        store.put_items(ids, columns_of(ids, version))
    stop.set()
    reader.join()
    assert not wrong
