"""What the requests of these tests are about: items, users with histories, and requests of every kind."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flame.config import FeaturesConfig
from flame.features.store.memory import MemoryStore
from flame.records import History, RankRequest
from flame.schema import InputSchema, RowLayout

ITEMS = 400
USERS = 40
FEATURES = FeaturesConfig(store="memory", cache_rows=1000, fetch_timeout_ms=60_000.0)


def columns(row: RowLayout, count: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Random values of every field."""
    return {
        field.name: rng.integers(0, field.vocabulary, (count, *field.shape))
        if field.vocabulary
        else rng.normal(size=(count, *field.shape)).astype(np.float32)
        for field in row.fields
    }


def history(schema: InputSchema, events: int, rng: np.random.Generator) -> History:
    return History(
        rng.integers(1, ITEMS + 1, events),
        rng.integers(0, schema.actions, events),
        np.sort(rng.integers(0, 10**6, events)),
    )


def filled_store(schema: InputSchema) -> MemoryStore:
    """Items and users with random features; user `n` has `n` events, up to the model's limit."""
    rng = np.random.default_rng(1)
    store = MemoryStore(schema)
    store.put_items(np.arange(1, ITEMS + 1), columns(schema.item_row, ITEMS, rng))
    users = np.arange(1, USERS + 1)
    histories = {int(user): history(schema, min(int(user), schema.max_history), rng) for user in users}
    store.put_users(users, columns(schema.user_row, USERS, rng), histories)
    return store


def requests(schema: InputSchema, count: int, seed: int = 0) -> list[RankRequest]:
    """Odd sizes, histories from the request and from the store, unknown items and users, every scenario."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        candidates = rng.integers(1, ITEMS + 20, rng.integers(1, schema.max_candidates + 1))
        events = int(rng.integers(0, schema.max_history + 1))
        made.append(
            RankRequest(
                user=int(rng.integers(1, USERS + 5)),
                candidates=candidates,
                history=history(schema, events, rng) if number % 2 else None,
                scenario=int(rng.integers(0, schema.scenarios)),
                context={"hour": int(rng.integers(0, 25))} if number % 3 else {},
                request_id=f"request {number}",
            )
        )
    return made
