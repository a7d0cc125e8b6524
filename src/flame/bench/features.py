"""`flame bench features`: the feature side alone, in microseconds.

`look-up`: a batch of ids against a full item cache with rows of 64 bytes, copied into a buffer; ids uniform (every row
a cache miss of the processor) and by a zipf law (as traffic is). `gather`: a whole request into its packed buffer, for
the shapes of the paper and the schema of the preset, from a store in memory, in every mode of the cache: `warm` finds
each row fresh, `expired` finds each row too old, which `sync` fetches before it answers and `async` behind the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from flame.bench.distributions import Choice, ZipfItems
from flame.bench.progress import Show
from flame.bench.workloads import SCENARIOS, Limits, Recipe, Workload, generate
from flame.config import Config, FeaturesConfig
from flame.engine.presets import preset
from flame.features.cache import ItemCache
from flame.features.pipeline import FeaturePipeline
from flame.features.store.base import FOUND
from flame.features.store.memory import MemoryStore
from flame.metrics import Metrics
from flame.schema import Field, InputSchema

ROW_WORDS = 16
LOOK_UP_MARK_US = 130.0
"""What a look-up of 1024 ids among one million rows may cost (issue of the first release)."""

_PRESETS = {"base": "flame-base", "long": "flame-long"}
_USERS = 200
_CHUNK = 65_536
_EXPIRED_TTL_S = 1e-6

Mode = Literal["off", "sync", "async"]


@dataclass(frozen=True, slots=True)
class FeaturesBench:
    """`rows` in the cache, `ids` per look-up, `repeats` of everything (a tenth of them for each `gather`)."""

    rows: int = 1_000_000
    ids: int = 1024
    repeats: int = 2000
    seed: int = 0


def run(bench: FeaturesBench, config: Config, show: Show) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of the run."""
    rows = [*_look_ups(bench, show), *_gathers(bench, config.features, show)]
    return rows, {"repeats": bench.repeats, "seed": bench.seed}


def _look_ups(bench: FeaturesBench, show: Show) -> Iterator[dict[str, Any]]:
    generator = np.random.default_rng(bench.seed)
    cache = _full_cache(bench.rows, generator, show)
    words = np.empty(bench.ids * ROW_WORDS, np.int32)
    offsets = np.arange(bench.ids, dtype=np.int64) * ROW_WORDS
    status = np.empty(bench.ids, np.uint8)
    for name, exponent in (("uniform", 0.0), ("zipf 1.05", 1.05)):
        items = ZipfItems(bench.rows, exponent, generator)
        batches = [items.sample(bench.ids, generator) for _ in range(200)]
        turns = iter(range(2**62))

        def look_up(batches: list[NDArray[np.int64]] = batches, turns: Iterator[int] = turns) -> None:
            cache.lookup(batches[next(turns) % len(batches)], words, offsets, status)

        times = _microseconds(look_up, bench.repeats, f"look-up, {name}", show)
        misses = sum(cache.lookup(batch, words, offsets, status) for batch in batches)
        yield {
            "what": "look-up",
            "ids": bench.ids,
            "rows": bench.rows,
            "row_bytes": 4 * ROW_WORDS,
            "keys": name,
            "hit_share": 1 - misses / (bench.ids * len(batches)),
            **_times(times),
            "us_mark": LOOK_UP_MARK_US,
        }


def _full_cache(rows: int, generator: np.random.Generator, show: Show) -> ItemCache:
    """A cache with rows for the ids `1..rows`; a handful fall out again where a set overflows."""
    cache = ItemCache(rows, ROW_WORDS, ttl=86_400.0)
    for start in range(1, rows + 1, _CHUNK):
        show("filling the cache", start, rows)
        ids = np.arange(start, min(start + _CHUNK, rows + 1), dtype=np.int64)
        values = generator.integers(0, 1000, (len(ids), ROW_WORDS), np.int32)
        cache.insert(ids, values, np.full(len(ids), FOUND, np.uint8))
    return cache


def _gathers(bench: FeaturesBench, config: FeaturesConfig, show: Show) -> Iterator[dict[str, Any]]:
    repeats = max(20, bench.repeats // 10)
    for scenario, name in _PRESETS.items():
        schema = preset(name).input
        workload = _workload(schema, scenario, bench.seed)
        modes: tuple[tuple[Mode, bool], ...] = (
            ("off", False),
            ("sync", False),
            ("async", False),
            ("sync", True),
            ("async", True),
        )
        for mode, expired in modes:
            ttl = _EXPIRED_TTL_S if expired else config.cache_ttl_s
            settings = replace(config, cache=mode, cache_rows=schema.item_id.vocabulary, cache_ttl_s=ttl)
            pipeline = FeaturePipeline(schema, _store(schema, bench.seed), settings, Metrics())
            state = "no cache" if mode == "off" else "expired" if expired else "warm"
            times, degraded = _gather_times(pipeline, workload, repeats, f"gather, {scenario}, {mode} {state}", show)
            pipeline.close()
            shape = SCENARIOS[scenario]
            yield {
                "what": "gather",
                "scenario": scenario,
                "history": shape.history,
                "candidates": max(shape.candidates.values),
                "cache": mode,
                "state": state,
                "degraded_share": degraded,
                **_times(times),
            }


def _gather_times(
    pipeline: FeaturePipeline, workload: Workload, repeats: int, text: str, show: Show
) -> tuple[NDArray[np.float64], float]:
    """Microseconds of a request `[repeats]` after all requests were gathered once, and the share of degraded ones."""
    pipeline.warm_up()
    for request in workload:
        pipeline.release(pipeline.gather(request))
    turns, degraded = iter(range(2**62)), 0

    def gather() -> None:
        nonlocal degraded
        features = pipeline.gather(workload.request(next(turns)))
        degraded += features.counts.degraded
        pipeline.release(features)

    times = _microseconds(gather, repeats, text, show)
    return times, degraded / next(turns)


def _workload(schema: InputSchema, scenario: str, seed: int) -> Workload:
    shape = SCENARIOS[scenario]
    limits = Limits(
        schema.max_history, schema.max_candidates, schema.actions, schema.scenarios, schema.item_id.vocabulary - 1
    )
    return generate(Recipe(100, shape.candidates, Choice((shape.history,)), users=_USERS, seed=seed), limits)


def _store(schema: InputSchema, seed: int) -> MemoryStore:
    """A row for every item id of the model and for every user of the workload."""
    generator = np.random.default_rng(seed)
    store = MemoryStore(schema)
    items = np.arange(1, schema.item_id.vocabulary, dtype=np.int64)
    store.put_items(items, {field.name: _column(field, len(items), generator) for field in schema.item})
    users = np.arange(1, _USERS + 1, dtype=np.int64)
    store.put_users(users, {field.name: _column(field, len(users), generator) for field in schema.user})
    return store


def _column(field: Field, count: int, generator: np.random.Generator) -> NDArray[Any]:
    shape = (count, *field.shape)
    if field.vocabulary is not None:
        return generator.integers(0, field.vocabulary, shape, np.int32)
    return generator.standard_normal(shape, np.float32)


def _microseconds(call: Callable[[], None], repeats: int, text: str, show: Show) -> NDArray[np.float64]:
    """Times of a call `[repeats]` after a tenth as many that do not count."""
    for _ in range(max(3, repeats // 10)):
        call()
    times = np.empty(repeats)
    for index in range(repeats):
        start = time.perf_counter_ns()
        call()
        times[index] = (time.perf_counter_ns() - start) / 1e3
        if index % 64 == 0:
            show(text, index, repeats)
    show(text, repeats, repeats)
    return times


def _times(times: NDArray[np.float64]) -> dict[str, float]:
    return {
        "us_min": float(times.min()),
        "us_p50": float(np.percentile(times, 50)),
        "us_p99": float(np.percentile(times, 99)),
    }
