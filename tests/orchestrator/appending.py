"""An engine that goes on from states whose digests prove what they hold, and users whose histories grow."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flame.engine.backends.base import HistoryState, LaunchBuffers
from flame.engine.sampling import random_words
from flame.engine.spec import HstuConfig, ModelSpec, Profile, ProfileCost, Task
from flame.features.fingerprint import fingerprint, prefix_fingerprints
from flame.layout import EVENT_AGE, LENGTHS, SCENARIO, PackedLayout, PackedViews
from flame.records import FeatureCounts, Features
from flame.schema import Field, InputSchema, ItemTable
from tests.faulty_engine import GARBAGE, FaultyEngine
from tests.orchestrator.conftest import HashEngine, hashed_scores

TILE, CAPACITY = 4, 30

SPEC = ModelSpec(
    "growing",
    "1",
    (Task("click"), Task("like")),
    InputSchema(
        ItemTable(vocabulary=5000, dim=8),
        max_history=CAPACITY,
        max_candidates=200,
        actions=3,
        scenarios=2,
        item=(Field("price", "float32"),),
        user=(Field("age", "int32", vocabulary=9),),
        positions="oldest",
    ),
    hstu=HstuConfig(dim=8, layers=1, heads=1, attention_dim=8, linear_dim=8, times="gap"),
)
PREFIX = SPEC.record.prefix


def records(views: PackedViews, slot: int) -> NDArray[np.int32]:
    """A slot's events with gaps for ages."""
    events = views.events[slot, 0, : views.header[slot, LENGTHS]].copy()
    events[:, EVENT_AGE] = -np.diff(events[:, EVENT_AGE], prepend=events[:1, EVENT_AGE])
    return events


def tiles_of(views: PackedViews, slot: int, known: Sequence[int] = ()) -> list[int]:
    """A digest for each whole tile and all before it, and one for all events; the `known` ones are taken over."""
    found = list(known)
    digest = found[-1] if found else zlib.crc32(views.header[slot, SCENARIO].tobytes())
    events = records(views, slot)
    for start in range(TILE * len(known), len(events) + 1, TILE):
        digest = zlib.crc32(events[start : start + TILE].tobytes(), digest)
        found.append(digest)
    return found


class AppendState:
    """The digests of one history; none as long as nothing was encoded into it."""

    nbytes = 8

    def __init__(self) -> None:
        self.tiles: list[int] = []


class GrowingEngine(HashEngine):
    """As `HashEngine`, for histories that grow."""

    append_tile = TILE

    def state(self, history: int) -> HistoryState:
        return AppendState()

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        views = buffers.layout.views(buffers.words)
        assert not views.header[:users, PREFIX].any()
        self._score(buffers, [tiles_of(views, slot)[-1] for slot in range(users)])

    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        views = buffers.layout.views(buffers.words)
        for slot, state in enumerate(states):
            assert isinstance(state, AppendState)
            state.tiles = tiles_of(views, slot, state.tiles)
        buffers.words[:] = GARBAGE

    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        assert all(isinstance(state, AppendState) and state.tiles for state in states)
        self._score(buffers, [state.tiles[-1] for state in states if isinstance(state, AppendState)])


class AppendEngine(FaultyEngine):
    """A `GrowingEngine` with faults, of which an encode that fails leaves the prefix alone in its states.

    `appended` tells of every slot that was to be encoded: prefix and events.
    """

    def __init__(self, spec: ModelSpec, profiles: Sequence[Profile], costs: dict[Profile, ProfileCost]) -> None:
        super().__init__(GrowingEngine(spec, profiles, costs))
        self.appended: list[tuple[int, int]] = []

    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        views = buffers.layout.views(buffers.words)
        for slot, state in enumerate(states):
            assert isinstance(state, AppendState)
            prefix, length = int(views.header[slot, PREFIX]), int(views.header[slot, LENGTHS])
            assert prefix % TILE == 0
            assert prefix <= length
            assert len(state.tiles) >= prefix // TILE
            self.appended.append((prefix, length))
            state.tiles = state.tiles[: prefix // TILE]
        super().encode(buffers, states)


def asked(user: int, events: int, candidates: int = 100, *, seed: int = 0, changed: int | None = None) -> Features:
    """A request of a user who has had so many events by now; of these the newest that fit are kept.

    `changed` is an event that is another one than in the user's other requests.
    """
    long = PackedLayout(SPEC.record, 1, 90, 1)
    past = long.views(random_words(SPEC, long, [[90]], [1], np.random.default_rng(user)))
    if changed is not None:
        past.events[0, 0, changed, 0] ^= 1
    kept = past.events[0, 0, max(0, events - CAPACITY) : events].copy()
    kept[:, EVENT_AGE] -= kept[-1, EVENT_AGE] if len(kept) else 0
    layout = PackedLayout(SPEC.record, 1, len(kept), candidates)
    words = random_words(SPEC, layout, [[len(kept)]], [candidates], np.random.default_rng(1000 + 90 * user + seed))
    views = layout.views(words)
    views.events[0, 0], views.header[0, SCENARIO] = kept, past.header[0, SCENARIO]
    lengths = (len(kept),)
    prefixes = prefix_fingerprints(views, len(kept), TILE)
    return Features(words, layout, lengths, fingerprint(views, lengths), FeatureCounts(), prefixes)


def expected(features: Features) -> NDArray[np.float32]:
    """The scores that a request must get."""
    views = features.layout.views(features.words)
    return hashed_scores(views, 0, tiles_of(views, 0)[-1], len(SPEC.tasks))


def profiles_of(users: Sequence[int], sizes: Sequence[int] = (16, 64)) -> list[Profile]:
    return [Profile(user, CAPACITY, size) for user in users for size in sizes]
