"""A schema with every kind of field, and helpers that tests of the feature side share as fixtures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flame.errors import StoreUnavailable
from flame.features.store.base import Answers, FeatureStore, UserRecord
from flame.features.store.memory import MemoryStore
from flame.layout import Words
from flame.records import History, Ids
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


class FaultyStore(FeatureStore):
    """Another store with a delay, failures and a gate, which notes what it is asked.

    It keeps the contract: late rows stay unanswered, and half of a failed query may be answered before it fails.
    """

    def __init__(self, inner: FeatureStore) -> None:
        self.inner = inner
        self.delay_s = 0.0
        self.failing = False
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()
        self.queries: list[list[int]] = []
        self.users: list[tuple[int, int]] = []
        self.closed = False

    def items(self, ids: Ids, rows: Words, answers: Answers, deadline: float | None) -> None:
        assert len(np.unique(ids)) == len(ids), "the contract says unique ids"
        assert not answers.any()
        self.queries.append(ids.tolist())
        if not self._pass(deadline):
            return
        if self.broken:
            raise RuntimeError("a bug in the store")
        if self.failing:
            half = len(ids) // 2
            self.inner.items(ids[:half], rows[:half], answers[:half], deadline)
            raise StoreUnavailable("the test says so")
        self.inner.items(ids, rows, answers, deadline)

    def user(self, user: int, events: int, deadline: float | None) -> UserRecord | None:
        self.users.append((user, events))
        if self.failing:
            raise StoreUnavailable("the test says so")
        return self.inner.user(user, events, deadline)

    def close(self) -> None:
        self.closed = True
        self.inner.close()

    def asked(self) -> Counter[int]:
        """How often each id was asked for."""
        return Counter(item for query in self.queries for item in query)

    def _pass(self, deadline: float | None) -> bool:
        """Waits for gate and delay; False if the deadline came first."""
        left = 30.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self.gate.wait(left):
            return False
        left = 30.0 if deadline is None else max(0.0, deadline - time.monotonic())
        time.sleep(min(self.delay_s, left))
        return self.delay_s <= left


@pytest.fixture
def faulty(store: MemoryStore) -> FaultyStore:
    """The store of these tests behind a `FaultyStore`."""
    return FaultyStore(store)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """`eventually(condition)` waits until the condition holds and fails if it does not within five seconds."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 5.0
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.002)

    return wait
