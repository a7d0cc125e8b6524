"""The whole feature side: stores, cache, assembly, staging and counts together."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from flame.config import FeaturesConfig
from flame.errors import ConfigError, StoreUnavailable
from flame.features.pipeline import FeaturePipeline
from flame.features.rows import pack_rows
from flame.features.staging import StagingPool
from flame.features.store.memory import MemoryStore
from flame.metrics import Metrics
from flame.records import FeatureCounts, Features, History, RankRequest
from flame.schema import InputSchema, ItemTable, SequenceSpec

MODES = ["off", "sync", "async"]
Make = Callable[..., FeaturePipeline]


@pytest.fixture
def make(faulty: Any, schema: InputSchema) -> Iterator[Make]:
    """`make(schema, embeddings, metrics, tile, **config)`: pipelines over the faulty store, closed at the end."""
    made: list[FeaturePipeline] = []

    def build(
        own: InputSchema = schema, embeddings: Any = None, metrics: Any = None, tile: int = 0, **config: Any
    ) -> FeaturePipeline:
        settings = FeaturesConfig(**{"cache": "sync", "cache_rows": 2000, "fetch_timeout_ms": 5000.0} | config)
        made.append(FeaturePipeline(own, faulty, settings, metrics or Metrics(), embeddings, append_tile=tile))
        return made[-1]

    yield build
    faulty.gate.set()
    for pipeline in made:
        pipeline.close()


def candidates_of(*ids: int) -> np.ndarray:
    return np.array(ids, np.int64)


def copied(pipeline: FeaturePipeline, request: RankRequest) -> Features:
    """The features of a request with a buffer of their own, released."""
    features = pipeline.gather(request)
    own = Features(features.words.copy(), features.layout, features.lengths, features.fingerprint, features.counts)
    pipeline.release(features)
    return own


def used(features: Features) -> bytes:
    """Every word that means something."""
    header, events, candidates = features.layout.views(features.words)
    parts = [header, *(events[0, place, :length] for place, length in enumerate(features.lengths)), candidates]
    return b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize("mode", MODES)
def test_all_modes_agree_once_the_rows_are_there(
    make: Make, mode: str, schema: InputSchema, columns_of: Any, eventually: Callable[..., None]
) -> None:
    pipeline = make(cache=mode)
    request = RankRequest(user=4, candidates=candidates_of(5, 7, 5, 299), scenario=1, context={"hour": 3})
    eventually(lambda: copied(pipeline, request).counts == FeatureCounts())
    features = copied(pipeline, request)
    views = features.layout.views(features.words)
    rows = pack_rows(schema.item_row, columns_of(request.candidates), 4)
    np.testing.assert_array_equal(views.candidates[0, :, 1:], rows)
    assert views.header[0, :5].tolist() == [1, 4, 20, 20, features.lengths[2]]
    assert views.header[0, features.layout.record.user_start] == 4
    other = copied(make(cache="off"), request)
    assert used(other) == used(features)
    assert other.fingerprint == features.fingerprint


def test_a_history_comes_from_the_request_or_else_the_newest_of_the_store(
    make: Make, faulty: Any, history_of: Any, schema: InputSchema
) -> None:
    pipeline = make()
    ids = candidates_of(1)
    stored = copied(pipeline, RankRequest(user=9, candidates=ids))
    assert stored.lengths[:2] == (32, 32), "the newest max_history of 90 events"
    whole = faulty.inner.user(9, 1000, None).history
    events = stored.layout.views(stored.words).events
    expected = whole.timestamps[-1] - whole.timestamps[-64:-32]
    np.testing.assert_array_equal(events[0, 0, :32, 2], expected)
    given = copied(pipeline, RankRequest(user=9, candidates=ids, history=history_of(10, 4, 1)))
    assert given.lengths[:2] == (5, 5)
    assert faulty.users == [(9, 64), (9, 0)], "a history that is given is not looked up"
    assert given.fingerprint != stored.fingerprint
    assert given.layout.views(given.words).header[0, given.layout.record.user_start] == 9


def test_prefixes_stay_as_a_history_grows_until_it_slides(make: Make, schema_of: Any) -> None:
    growing = schema_of(sequences=(SequenceSpec("all"),), positions="oldest")
    pipelines = {tile: make(growing, tile=tile) for tile in (0, 8)}
    rng = np.random.default_rng(2)
    items, actions, times = rng.integers(1, 200, 80), rng.integers(0, 4, 80), np.sort(rng.integers(0, 10**6, 80))

    def prefixes(events: int, tile: int = 8, scenario: int = 0) -> tuple[bytes, ...]:
        had = slice(max(0, events - 64), events)
        history = History(items[had], actions[had], times[had])
        features = pipelines[tile].gather(RankRequest(1, candidates_of(3, 4), history, scenario))
        assert features.layout.views(features.words).header[0, features.layout.record.prefix] == 0
        pipelines[tile].release(features)
        return features.prefixes

    whole = prefixes(64)
    assert len(set(whole)) == 8
    for events in (0, 7, 8, 31, 63):
        assert prefixes(events) == whole[: events // 8]
    assert not set(prefixes(65)) & set(whole)
    assert not set(prefixes(64, scenario=1)) & set(whole)
    assert prefixes(64, tile=0) == ()


def test_a_user_nobody_knows_has_no_history_and_is_told(make: Make, schema: InputSchema, history_of: Any) -> None:
    pipeline = make()
    features = copied(pipeline, RankRequest(user=12345, candidates=candidates_of(1)))
    assert features.lengths == (0, 0, 0)
    assert features.counts == FeatureCounts(unknown_user=True)
    assert features.counts.degraded
    record = features.layout.record
    user = features.layout.views(features.words).header[0, record.user_start : record.context_start]
    np.testing.assert_array_equal(user, schema.user_row.default_row())
    given = copied(pipeline, RankRequest(user=12345, candidates=candidates_of(1), history=history_of(4, 4, 0)))
    assert given.counts.unknown_user, "the user row is still a default"


def test_the_store_is_not_asked_for_what_nobody_reads(make: Make, faulty: Any, schema_of: Any, history_of: Any) -> None:
    schema = schema_of(item=(), user=())
    faulty.inner = MemoryStore(schema)
    faulty.inner.put_users(np.ones(1, np.int64), {})
    pipeline = make(schema)
    features = copied(pipeline, RankRequest(user=1, candidates=candidates_of(1, 2000), history=history_of(4, 4, 0)))
    assert faulty.users == []
    assert faulty.queries == []
    assert features.counts == FeatureCounts(unknown=1)
    assert not copied(pipeline, RankRequest(user=1, candidates=candidates_of(1))).counts.unknown_user
    assert faulty.users == [(1, 64)]


def test_states_of_rows_are_counted_in_answers_and_metrics(make: Make, faulty: Any) -> None:
    metrics = Metrics()
    pipeline = make(metrics=metrics, fetch_timeout_ms=20.0)
    request = RankRequest(user=1, candidates=candidates_of(1, 2, 2, 500, 1500))
    first = copied(pipeline, RankRequest(user=77, candidates=request.candidates))
    assert first.counts == FeatureCounts(unknown=2, unknown_user=True)
    faulty.gate.clear()
    second = copied(pipeline, RankRequest(user=77, candidates=candidates_of(1, 3, 4)))
    assert second.counts == FeatureCounts(missing=2, unknown_user=True)
    values = {
        state: metrics.registry.get_sample_value("flame_features_total", {"state": state})
        for state in ("fresh", "stale", "missing", "unknown")
    }
    assert values == {"fresh": 4, "stale": 0, "missing": 2, "unknown": 2}


def test_a_deadline_sooner_than_the_timeout_is_kept(make: Make, faulty: Any) -> None:
    pipeline = make(fetch_timeout_ms=20_000.0)
    faulty.gate.clear()
    began = time.monotonic()
    request = RankRequest(user=1, candidates=candidates_of(1, 2), deadline=began + 0.03)
    assert copied(pipeline, request).counts.missing == 2 + 10 + _likes(pipeline, faulty)
    assert time.monotonic() - began < 5.0


def _likes(pipeline: FeaturePipeline, faulty: Any) -> int:
    """Events of user 1 that the third sequence takes."""
    actions = faulty.inner.user(1, 64, None).history.actions
    return min(5, int(np.isin(actions, (1, 3)).sum()))


def test_a_store_that_cannot_give_the_user_fails_the_request_and_leaks_nothing(make: Make, faulty: Any) -> None:
    metrics = Metrics()
    pipeline = make(metrics=metrics)
    faulty.failing = True
    with pytest.raises(StoreUnavailable, match="the test says so"):
        pipeline.gather(RankRequest(user=1, candidates=candidates_of(1)))
    faulty.failing = False
    faulty.broken = True
    with pytest.raises(RuntimeError, match="a bug"):
        pipeline.gather(RankRequest(user=1, candidates=candidates_of(1)))
    assert not pipeline._staging._out
    assert metrics.registry.get_sample_value("flame_store_errors_total") == 1


@pytest.mark.parametrize("rows", [10**13, 10**30])
def test_a_cache_that_no_machine_has_room_for_is_a_wrong_setting(schema: InputSchema, rows: int) -> None:
    with pytest.raises(ConfigError, match=f"cache_rows is {rows}"):
        FeaturePipeline(schema, MemoryStore(schema), FeaturesConfig(cache_rows=rows, numa="off"), Metrics())


def test_a_buffer_full_of_nan_leaves_no_trace(make: Make) -> None:
    pipeline = make()
    request = RankRequest(user=5, candidates=candidates_of(3, 999, 4, -1))
    first = pipeline.gather(request)
    before = used(first)
    first.words[:] = np.float32(np.nan).view(np.int32)
    pipeline.release(first)
    again = pipeline.gather(request)
    assert again.words.ctypes.data == first.words.ctypes.data, "the same memory, or this test shows nothing"
    assert used(again) == before
    assert again.fingerprint == first.fingerprint
    pipeline.release(again)
    with pytest.raises(AssertionError):
        pipeline.release(again)


@pytest.mark.parametrize("lookup", ["device", "host"])
@pytest.mark.parametrize("mode", ["sync", "off"])
def test_many_threads_never_get_each_others_features(make: Make, schema_of: Any, mode: str, lookup: Any) -> None:
    schema = schema_of(item_id=ItemTable(400, 8, lookup=lookup))
    table = np.random.default_rng(0).random((400, 8), np.float32) if lookup == "host" else None
    pipeline = make(schema, table, cache=mode, cache_rows=100)
    random = np.random.default_rng(1)
    requests = [
        RankRequest(user=int(user), candidates=random.integers(1, 299, int(count)), scenario=int(user) % 3)
        for user, count in zip(random.integers(1, 12, 40), random.integers(1, 200, 40), strict=True)
    ]
    alone = [used(copied(pipeline, request)) for request in requests]
    wrong: list[object] = []

    def run(worker: int) -> None:
        try:
            for place in np.random.default_rng(worker).integers(0, 40, 60):
                features = pipeline.gather(requests[place])
                if used(features) != alone[place] or features.counts.missing:
                    wrong.append((place, features.counts))
                pipeline.release(features)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_compiled_after_warm_up(tmp_path: Any) -> None:
    """In a process of its own: every mode, both look-ups, read-only inputs, stale rows; then counts signatures."""
    result = subprocess.run([sys.executable, "-c", _WARM_UP], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["compiled", "0"]


_WARM_UP = """
import sys, time
import numpy as np
from flame.config import FeaturesConfig
from flame.features.pipeline import FeaturePipeline
from flame.features.staging import StagingPool
from flame.features.store.memory import MemoryStore
from flame.metrics import Metrics
from flame.records import History, RankRequest
from flame.schema import Field, InputSchema, ItemTable, SequenceSpec

def signatures():
    kernels = (value for name, module in list(sys.modules.items()) if name.startswith("flame.features.kernels")
               for value in vars(module).values() if hasattr(value, "nopython_signatures"))
    return sum(len(kernel.nopython_signatures) for kernel in {id(k): k for k in kernels}.values())

new = 0
for lookup in ("device", "host"):
    for mode in ("sync", "async", "off"):
        schema = InputSchema(item_id=ItemTable(50, 4, lookup=lookup), max_history=50, max_candidates=50, actions=3,
                             item=(Field("x", "float32"),), sequences=(SequenceSpec("all"),))
        store = MemoryStore(schema)
        store.put_items(np.arange(1, 40), {})
        table = np.zeros((50, 4), np.float32) if lookup == "host" else None
        config = FeaturesConfig(cache=mode, cache_rows=100, cache_ttl_s=0.001)
        pipeline = FeaturePipeline(schema, store, config, Metrics(), table)
        pipeline.warm_up()
        before = signatures()
        frozen = np.frombuffer(np.arange(20).tobytes(), np.int64)
        for step in range(3):
            history = None if step == 0 else History(frozen, frozen % 3, frozen)
            request = RankRequest(user=1, candidates=frozen if step else np.arange(20), history=history)
            pipeline.release(pipeline.gather(request))
            time.sleep(0.02)
        pipeline.close()
        new += signatures() - before
print("compiled", new)
"""


def test_closing_closes_the_store_once_for_all(faulty: Any, schema: InputSchema) -> None:
    with closing(FeaturePipeline(schema, faulty, FeaturesConfig(cache_rows=10), Metrics())) as pipeline:
        pipeline.bind_thread()
    assert faulty.closed
    pipeline.close()


def test_a_sequence_may_be_empty_while_others_are_not(make: Make, schema_of: Any, history_of: Any) -> None:
    schema = schema_of(sequences=(SequenceSpec("all", limit=2), SequenceSpec("none", "actions", actions=(3,))))
    pipeline = make(schema)
    history = history_of(9, 3, 0)
    features = copied(pipeline, RankRequest(user=1, candidates=candidates_of(1), history=history))
    assert features.lengths == (2, 0)


@pytest.mark.parametrize("pinned", [True, False])
def test_features_say_whether_gpus_read_them(make: Make, monkeypatch: pytest.MonkeyPatch, pinned: bool) -> None:
    monkeypatch.setattr(StagingPool, "pinned", pinned)
    pipeline = make()
    features = pipeline.gather(RankRequest(user=4, candidates=candidates_of(5, 7)))
    assert features.pinned == pinned
    pipeline.release(features)
