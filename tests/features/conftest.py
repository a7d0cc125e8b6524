"""A schema with every kind of field, and helpers that tests of the feature side share as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flame.features.store.memory import MemoryStore
from flame.records import History
from flame.schema import Field, InputSchema, ItemTable, SequenceSpec

ITEM = (
    Field("price", "float32", default=0.5),
    Field("genres", "int32", (3,), vocabulary=20, default=2),
    Field("year", "int32", vocabulary=200),
    Field("scores", "float32", (2, 2)),
)
USER = (Field("age", "int32", vocabulary=100, default=7), Field("taste", "float32", (3,)))
CONTEXT = (Field("hour", "int32", vocabulary=24), Field("place", "float32", (2,), default=-1.0))

SchemaOf = Callable[..., InputSchema]


@pytest.fixture
def schema_of() -> SchemaOf:
    """A function that makes the schema of these tests with some settings changed."""

    def make(**changes: Any) -> InputSchema:
        settings: dict[str, Any] = {
            "item_id": ItemTable(vocabulary=1000, dim=8),
            "max_history": 64,
            "max_candidates": 200,
            "actions": 4,
            "scenarios": 3,
            "item": ITEM,
            "user": USER,
            "context": CONTEXT,
            "sequences": (
                SequenceSpec("old", "part", part=0, of=2),
                SequenceSpec("new", "part", part=1, of=2),
                SequenceSpec("likes", "actions", actions=(1, 3), limit=5),
            ),
        }
        return InputSchema(**(settings | changes))

    return make


@pytest.fixture
def schema(schema_of: SchemaOf) -> InputSchema:
    return schema_of()


def item_columns(ids: NDArray[np.int64], version: int = 0) -> dict[str, NDArray[np.generic]]:
    """Values that tell item and version apart."""
    count = len(ids)
    return {
        "price": (ids * 0.25 + version).astype(np.float32),
        "genres": (np.stack([ids, ids + 1, ids + 2], 1) % 20).astype(np.int32),
        "year": ((ids + version) % 200).astype(np.int32),
        "scores": (np.arange(4).reshape(1, 2, 2) + ids.reshape(count, 1, 1)).astype(np.float32),
    }


@pytest.fixture
def columns_of() -> Callable[..., dict[str, NDArray[np.generic]]]:
    """Item columns of given ids: `columns_of(ids, version=0)`."""
    return item_columns


def random_history(events: int, actions: int, seed: int, items: int = 300) -> History:
    random = np.random.default_rng(seed)
    return History(
        random.integers(1, items, events),
        random.integers(0, actions, events),
        np.sort(random.integers(1_000_000, 2_000_000, events)),
    )


@pytest.fixture
def history_of() -> Callable[..., History]:
    """A random history: `history_of(events, actions, seed)`."""
    return random_history


@pytest.fixture
def store(schema: InputSchema) -> MemoryStore:
    """Items 1 to 299 and users 1 to 9, user n with 10 n events (user 9: more than the model takes)."""
    store = MemoryStore(schema)
    ids = np.arange(1, 300, dtype=np.int64)
    store.put_items(ids, item_columns(ids))
    users = np.arange(1, 10, dtype=np.int64)
    columns = {"age": users.astype(np.int32), "taste": np.outer(users, [1.0, 2.0, 3.0]).astype(np.float32)}
    store.put_users(users, columns, {int(user): random_history(10 * int(user), 4, int(user)) for user in users})
    return store
