"""The whole path of a request, in process: validate, admit, gather, submit, respond.

    with Ranker.load("preset:tiny-climber") as ranker:
        response = ranker.rank(RankRequest(user=42, candidates=np.arange(1, 21)))
        best = response.scores[:, 0].argsort()[::-1]

A server is this and two protocols around it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from flame.config import Config
from flame.engine.backends.base import Engine
from flame.engine.build import build_all
from flame.engine.package import load
from flame.engine.spec import ModelSpec
from flame.features.pipeline import FeaturePipeline
from flame.features.store import open_store
from flame.features.store.base import FeatureStore
from flame.features.validate import check
from flame.in_flight import Answer, InFlight, Station
from flame.metrics import Metrics
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.profiles import default_profiles
from flame.orchestrator.timeline import Timeline
from flame.orchestrator.workers import Workers
from flame.records import RankRequest, RankResponse
from flame.statistics import Ledger, Statistics

_log = logging.getLogger(__name__)

_DEFAULTS = Config()

_LAST_GATHER_S = 5.0
"""How long `close` waits for the feature store, beyond the drain: nothing can interrupt it."""


class Ranker:
    """Ranks candidates with one model; every method may be called from any thread.

    Takes over `engine` (or several of them, one for each device) and `features`: `close` closes them.
    """

    def __init__(
        self,
        engine: Engine | Sequence[Engine],
        features: FeaturePipeline,
        config: Config = _DEFAULTS,
        metrics: Metrics | None = None,
    ) -> None:
        self._engines = [engine] if isinstance(engine, Engine) else list(engine)
        first = self._engines[0]
        self.spec: ModelSpec = first.spec
        self.backend: str = first.backend
        self.devices: tuple[str, ...] = tuple(each.device for each in self._engines)
        self.precision: str = first.precision
        self.metrics = metrics or Metrics()
        self._features = features
        self._deadline_s = config.orchestrator.default_deadline_ms / 1e3
        self._orchestrator = Orchestrator(self._engines, config.orchestrator, self.metrics)
        self.timeline: Timeline = self._orchestrator.timeline
        # Requests of either priority: those of one must not wait for a thread that gathers for the other.
        self._workers = Workers(2 * config.orchestrator.max_in_flight, "flame-request", features.bind_thread)
        self._ledger = Ledger(self.metrics)
        tasks = tuple(task.name for task in self.spec.tasks)
        self._station = Station(
            self.spec, self.backend, tasks, features, self._orchestrator, self._ledger, self.metrics
        )
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def load(
        cls,
        source: str | Path,
        config: Config = _DEFAULTS,
        *,
        metrics: Metrics | None = None,
        store: FeatureStore | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Ranker:
        """A ranker that is ready to serve: reads the model, opens its store, builds the engine for each of its
        devices, warms up.

        `source` is a model folder or `preset:NAME`. A `store` given takes the place of the configured one, and is the
        ranker's from then on. Raises what is wrong with the model, the settings, the store or the machine.
        """
        metrics = metrics or Metrics()
        with ExitStack() as undo:
            if store is not None:
                undo.callback(store.close)
            package = load(source, allow_code=config.engine.allow_code)
            schema = package.spec.input
            profiles = default_profiles(package.spec, config.orchestrator)
            if store is None:
                store = open_store(config.features, schema, package.path)
                undo.callback(store.close)
            engines = build_all(package, config.engine, profiles, threads=launch_threads(config), progress=progress)
            for engine in engines:
                undo.callback(engine.close)
            embeddings = package.item_embeddings() if schema.item_id.lookup == "host" else None
            pinned = engines[0].device != "cpu"
            tile = engines[0].append_tile
            features = FeaturePipeline(schema, store, config.features, metrics, embeddings, pinned, tile)
            undo.callback(features.close)
            features.warm_up()
            ranker = cls(engines, features, config, metrics)
            undo.pop_all()
        return ranker

    def rank(self, request: RankRequest) -> RankResponse:
        """Scores the candidates of `request`; blocks until they are there. Raises what `start` and its future raise."""
        return self.start(request).result()

    def start(self, request: RankRequest) -> Answer:
        """Lets a request in; its response comes on another thread.

        Raises at once, before any work, `RequestError` for what is wrong with the request and `RefusedError` for what
        cannot be done now. The future raises `RefusedError`, `FeatureError` or `EngineError`. Its callbacks run on the
        thread that launches: they should be short, and must not wait for another response.
        """
        began = time.monotonic()
        check(request, self.spec.input, self._station.tasks)
        request = _of_python(request)
        if request.deadline is None and self._deadline_s:
            request = replace(request, deadline=began + self._deadline_s)
        self._orchestrator.check()
        permit = self._orchestrator.admission.admit(request)
        if permit.truncated:
            request = replace(request, candidates=request.candidates[: permit.candidates])
        in_flight = InFlight(self._station, request, permit, began)
        try:
            self._workers.submit(in_flight.gather)
        except BaseException:
            permit.release()
            raise
        return in_flight.answer

    def bind_thread(self) -> None:
        """Keeps the calling thread on the core of the threads that launch, where those share one
        (`orchestrator.one_core`): for one thread that hardly does more than to start requests and to take answers. It
        calls `give_way` between two requests, and should start no threads."""
        self._orchestrator.bind_thread()

    def give_way(self) -> None:
        """Lets a thread go first that has a launch behind it; for a thread that called `bind_thread`."""
        self._orchestrator.give_way()

    @property
    def device(self) -> str:
        """Where the model runs, in a line."""
        return ", ".join(self.devices)

    @property
    def failed(self) -> Future[None]:
        """Ends when every executor of the engine has failed for good: from then on `start` raises `EngineFailed`."""
        return self._orchestrator.failed

    def statistics(self) -> Statistics:
        """Sums over the requests that have ended."""
        return self._ledger.snapshot()

    def close(self, drain_s: float = 0.0) -> int:
        """Takes nothing new, waits at most `drain_s` for requests in flight, cuts the rest, and frees everything.

        Returns how many were cut: they end with `ShuttingDown`. Closing twice does nothing.
        """
        with self._lock:
            if self._closed:
                return 0
            self._closed = True
        until = time.monotonic() + drain_s
        self._orchestrator.admission.drain(drain_s)
        self._orchestrator.close(max(0.0, until - time.monotonic()))
        if self._workers.close(_LAST_GATHER_S):
            self._features.close()
        else:
            _log.warning("the feature store does not answer; it stays open")
        if self._orchestrator.running:
            _log.warning("a launch does not end; the engine stays open")
        else:
            for engine in self._engines:
                engine.close()
        return self._ledger.cut

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _of_python(request: RankRequest) -> RankRequest:
    """With numbers of Python's own: compiled code takes none of numpy's for them."""
    user, deadline = request.user, request.deadline
    if type(user) is int and (deadline is None or type(deadline) is float):
        return request
    return replace(request, user=int(user), deadline=None if deadline is None else float(deadline))


def launch_threads(config: Config) -> int:
    """Threads of one launch: what the settings say, else the cores of this process shared by the executors."""
    return config.engine.threads or max(1, len(os.sched_getaffinity(0)) // config.orchestrator.executors)
