"""The prepared store holds what training reads, and histories end where the split says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flame.examples.movielens import rows, split
from flame.examples.movielens.columns import Statistics
from flame.examples.movielens.dataset import Dataset
from flame.examples.movielens.prepare import STORE, prepare
from flame.examples.movielens.schema import MOVIES, input_schema
from flame.features.store.base import FOUND
from flame.features.store.file import FileStore


def test_the_store_gives_back_rows_and_histories(taste: Dataset, tmp_path: Path) -> None:
    schema, until = input_schema(), split.boundary(taste.events)
    report = prepare(taste, until, tmp_path, schema)
    histories = split.histories(taste.events, until)
    assert (report.items, report.users) == (MOVIES, len(taste.people))
    assert report.events == sum(len(history.items) for history in histories.values()) < len(taste.events)
    assert (report.defaults, report.users_without_row, report.events_without_item) == ({}, 0, 0)

    store = FileStore(tmp_path / STORE, schema)
    ids = np.arange(1, MOVIES + 1)
    found = np.zeros((MOVIES, schema.item_row.words), np.int32)
    answers = np.full(MOVIES, 255, np.uint8)
    store.items(ids, found, answers, None)
    assert (answers == FOUND).all()
    statistics = Statistics.of(split.training(taste.events, until), until)
    np.testing.assert_array_equal(found, rows.of_items(taste, schema, statistics))
    for user, row in rows.of_users(taste, schema).items():
        record = store.user(user, schema.max_history, None)
        assert record is not None
        np.testing.assert_array_equal(record.row, row)
        if user in histories:
            np.testing.assert_array_equal(record.history.items, histories[user].items)
            np.testing.assert_array_equal(record.history.actions, histories[user].actions)
    store.close()


def test_preparing_again_replaces_the_store(taste: Dataset, tmp_path: Path) -> None:
    schema, until = input_schema(), split.boundary(taste.events)
    first = prepare(taste, until, tmp_path, schema)
    assert prepare(taste, split.boundary(taste.events, 0.5), tmp_path, schema).events < first.events
