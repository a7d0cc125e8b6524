"""A real server on a tiny model with a store whose answers are known; run as a process by the tests of this folder.

    python tiny_server.py '{"server.drain_s": 1}'


and, to have launches fail by the number of candidates,

    python tiny_server.py '{"server.drain_s": 1}' faulty

prints one line of JSON with the ports when it is ready, and one when it has ended. Beside settings it takes `launch_s`:
every launch then takes so many seconds for each slot of a candidate, and is known to.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import flame.ranker
from flame.config import load
from flame.engine.backends.base import Engine, LaunchBuffers
from flame.engine.build import build_all
from flame.engine.presets import preset
from flame.engine.spec import ProfileCost
from flame.errors import StoreUnavailable
from flame.features.store.base import UserRecord
from flame.features.store.memory import MemoryStore
from flame.layout import CANDIDATES
from flame.ranker import Ranker
from flame.records import History
from flame.schema import InputSchema, RowLayout
from flame.server.lifecycle import serve
from tests.faulty_engine import FaultyEngine

MODEL = "preset:tiny-climber"
ITEMS = 600
USERS = 50
AWAY = 9_001
"""A user for whom the store cannot be read."""
DEFECT = 9_002
"""A user who finds a defect of the store."""
FAILS, HANGS, BREAKS = 11, 12, 13
"""Candidates of a request whose launch fails, never ends, or is the last that this engine can do."""
SLOW = 10_000
"""User `SLOW + n` takes the store n milliseconds, and is otherwise user `n % USERS`."""


class KnownStore(MemoryStore):
    """Items 1 to 599 and users 1 to 49 with random features, and users that cost time or end in an error."""

    def user(self, user: int, events: int, deadline: float | None) -> UserRecord | None:
        if user == AWAY:
            raise StoreUnavailable("the store does not answer")
        if user == DEFECT:
            raise KeyError("a secret of the store")
        if user >= SLOW:
            time.sleep((user - SLOW) / 1e3)
            user = (user - SLOW) % USERS
        return super().user(user, events, deadline)


def known_store(schema: InputSchema) -> KnownStore:
    """The same store in every process."""
    random = np.random.default_rng(5)
    store = KnownStore(schema)
    items, users = np.arange(1, ITEMS), np.arange(1, USERS)
    store.put_items(items, _columns(schema.item_row, len(items), random))
    histories = {int(user): _history(schema, int(user) % (schema.max_history + 1), random) for user in users}
    store.put_users(users, _columns(schema.user_row, len(users), random), histories)
    return store


def _columns(row: RowLayout, count: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        field.name: random.integers(0, field.vocabulary, (count, *field.shape)).astype(np.int32)
        if field.vocabulary
        else random.normal(size=(count, *field.shape)).astype(np.float32)
        for field in row.fields
    }


def _history(schema: InputSchema, events: int, random: np.random.Generator) -> History:
    return History(
        random.integers(1, ITEMS, events),
        random.integers(0, schema.actions, events),
        np.sort(random.integers(1_700_000_000, 1_700_500_000, events)),
    )


def slowed(engine: Engine, seconds: float) -> Engine:
    """`engine` with launches that take so long for each slot of a candidate, and costs that say so."""
    engine.costs = {p: ProfileCost(*[1e3 * seconds * p.users * p.candidates] * 3) for p in engine.profiles}
    for name in ("rank", "encode", "score"):
        setattr(engine, name, partial(_slowly, getattr(engine, name), seconds))
    return engine


def _slowly(run: Callable[..., None], seconds: float, buffers: LaunchBuffers, *rest: object) -> None:
    time.sleep(seconds * buffers.profile.users * buffers.profile.candidates)
    run(buffers, *rest)


def faulty(build: Callable[..., list[Engine]]) -> Callable[..., list[Engine]]:
    """Builds an engine with faults."""

    def engines(*args: Any, **options: Any) -> list[Engine]:
        made = FaultyEngine(*build(*args, **options))

        def has(candidates: int, buffers: LaunchBuffers) -> bool:
            return bool(buffers.layout.views(buffers.words).header[0, CANDIDATES] == candidates)

        def fails(kind: str, buffers: LaunchBuffers) -> bool:
            made.allocates = made.allocates and not has(BREAKS, buffers)
            return has(FAILS, buffers) or not made.allocates

        made.fails, made.hangs = fails, lambda kind, buffers: has(HANGS, buffers)
        return [made]

    return engines


def main() -> None:
    """Serves until a signal comes."""
    frozen = gc.get_freeze_count()
    overrides = json.loads(sys.argv[1])
    if seconds := overrides.pop("launch_s", 0.0):
        flame.ranker.build_all = lambda *given, **named: [
            slowed(engine, seconds) for engine in build_all(*given, **named)
        ]
    if "faulty" in sys.argv:
        flame.ranker.build_all = faulty(flame.ranker.build_all)
    config = load(overrides=overrides)
    ranker = Ranker.load(MODEL, config, store=known_store(preset("tiny-climber").input))
    cut = serve(
        ranker,
        config,
        ready=lambda at: print(
            json.dumps({"http": at.http_port, "grpc": at.grpc_port, "frozen": gc.get_freeze_count()}), flush=True
        ),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
    print(json.dumps({"cut": cut, "threads": threads, "frozen": gc.get_freeze_count() - frozen}), flush=True)


if __name__ == "__main__":
    main()
