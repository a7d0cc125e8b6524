"""The Proximal Data Accelerator: from a request to the packed buffer that a launch reads.

user record -> layout -> draft (all but item rows) -> item rows through the cache -> defaults, counts, fingerprint
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from flame.config import FeaturesConfig
from flame.errors import ConfigError, StoreUnavailable
from flame.features import numa
from flame.features.assemble import Assembler
from flame.features.cache import ItemCache
from flame.features.fetch import CachedFetcher, FailureLog, Fetcher
from flame.features.kernels.codes import ROW
from flame.features.modes import AsyncRows, DirectRows, RowSource, SyncRows
from flame.features.refresh import Refresher
from flame.features.staging import StagingPool
from flame.features.store.base import FeatureStore, UserRecord
from flame.features.store.memory import MemoryStore
from flame.metrics import Metrics
from flame.records import FeatureCounts, Features, History, RankRequest
from flame.schema import InputSchema

_SHORTEST_LEASE_S = 1.0
_LEASE_TIMEOUTS = 10


class FeaturePipeline:
    """Gathers features for one model; every method may be called from any thread.

    Takes over `store`: `close` closes it. `item_embeddings` is the model's item table where the host looks it up.
    `pinned` page-locks the buffers for a GPU, `append_tile` is the engine's. Raises `ConfigError` for a cache that does
    not fit the machine.
    """

    def __init__(
        self,
        schema: InputSchema,
        store: FeatureStore,
        config: FeaturesConfig,
        metrics: Metrics,
        item_embeddings: NDArray[np.float32] | None = None,
        pinned: bool = False,
        append_tile: int = 0,
    ) -> None:
        self._schema = schema
        self._store = store
        self._metrics = metrics
        self._timeout_s = config.fetch_timeout_ms / 1e3
        self._embeddings = item_embeddings
        self._assembler = Assembler(schema, item_embeddings, append_tile)
        self._staging = StagingPool(pinned=pinned)
        self._failures = FailureLog(metrics)
        self._default_user = schema.user_row.default_row()
        self._nodes = numa.nodes() if config.numa == "auto" else {}
        self._node = numa.choose_node(self._nodes)
        self._rows = self._source(config) if schema.item else None
        self._states = [metrics.features.labels(state) for state in ("fresh", "stale", "missing", "unknown")]

    def gather(self, request: RankRequest) -> Features:
        """The features of a request that `validate.check` has passed; blocks the calling thread.

        Waits for the store at most until the request's deadline or for the fetch timeout, whichever is first; item
        rows that did not come are counted in the result. Raises `StoreUnavailable` if the user's record cannot be
        had. Whoever gets the features calls `release` once.
        """
        until = time.monotonic() + self._timeout_s
        if request.deadline is not None:
            until = min(until, request.deadline)
        record, unknown_user = self._user(request, until)
        history = record.history if request.history is None else request.history
        layout = self._assembler.layout(len(history.items), len(request.candidates))
        words = self._staging.take(layout.words)
        try:
            draft = self._assembler.draft(request, record.row, history, layout, words)
            if self._rows is None:
                draft.status[:] = ROW
            else:
                self._rows.fill(draft.slots.ids, words, draft.slots.offsets, draft.status, until)
            features, fresh = self._assembler.finish(draft, unknown_user, self._staging.pinned)
        except BaseException:
            self._staging.release(words)
            raise
        self._count(features.counts, fresh)
        return features

    def release(self, features: Features) -> None:
        """Takes the buffer back; nobody may read it afterwards. Once per `gather`, which is asserted."""
        self._staging.release(features.words)

    def warm_up(self) -> None:
        """Compiles every kernel that a request can need; seconds at the very first start, then read from disk."""
        rehearsal = FeaturePipeline(
            self._schema,
            MemoryStore(self._schema),
            FeaturesConfig(cache="sync", cache_rows=8, numa="off"),
            Metrics(),
            self._embeddings,
        )
        one = np.ones(1, np.int64)
        rehearsal.release(rehearsal.gather(RankRequest(user=0, candidates=one, history=History(one, one * 0, one))))
        rehearsal.close()
        ItemCache(8, max(1, self._schema.item_row.words), 1.0).give_back(one)

    def bind_thread(self) -> None:
        """Keeps the calling thread on the NUMA node of this pipeline, for threads that gather; see `features.numa`."""
        numa.bind_current_thread(self._node, self._nodes)

    def close(self) -> None:
        """Stops the background threads and closes the store; no `gather` may be under way."""
        if self._rows is not None:
            self._rows.close()
        self._staging.close()
        self._store.close()

    def _user(self, request: RankRequest, until: float) -> tuple[UserRecord, bool]:
        """What the store knows of the user, and whether it was asked in vain. Not asked for what nobody reads."""
        if request.history is not None and not self._schema.user:
            return UserRecord(self._default_user, request.history), False
        events = self._schema.max_history if request.history is None else 0
        began = time.monotonic()
        try:
            record = self._store.user(int(request.user), events, until)
        except StoreUnavailable as error:
            self._failures.add(error)
            raise
        finally:
            self._metrics.store.observe(time.monotonic() - began)
        if record is None:
            return UserRecord(self._default_user, _no_history()), True
        return record, False

    def _source(self, config: FeaturesConfig) -> RowSource:
        """Where item rows come from, as the settings say."""
        words = self._schema.item_row.words
        fetcher = Fetcher(self._store, words, self._metrics, self._failures)
        if config.cache == "off":
            return DirectRows(fetcher)
        lease_s = max(_SHORTEST_LEASE_S, _LEASE_TIMEOUTS * self._timeout_s)
        try:
            cache = ItemCache(config.cache_rows, words, config.cache_ttl_s)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"features.cache_rows is {config.cache_rows}: no memory for so many rows of {4 * words} bytes "
                f"({error}); set it lower"
            ) from error
        cached = CachedFetcher(fetcher, cache, lease_s)
        refresher = Refresher(
            cached, cache, self._metrics, threads=config.refresh_threads, lease_s=lease_s, on_start=self.bind_thread
        )
        if config.cache == "async":
            return AsyncRows(cache, refresher, lease_s)
        return SyncRows(cache, cached, refresher, lease_s)

    def _count(self, counts: FeatureCounts, fresh: int) -> None:
        for state, count in zip(self._states, (fresh, counts.stale, counts.missing, counts.unknown), strict=True):
            if count:
                state.inc(count)


def _no_history() -> History:
    empty = np.zeros(0, np.int64)
    return History(empty, empty, empty)
