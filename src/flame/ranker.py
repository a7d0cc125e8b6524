"""The whole path of a request, in process: validate, admit, gather, submit, respond.

    with Ranker.load("preset:tiny-climber") as ranker:
        response = ranker.rank(RankRequest(user=42, candidates=np.arange(1, 101)))
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from flame.config import Config
from flame.engine.backends.base import Engine
from flame.engine.build import build_all
from flame.engine.package import load
from flame.engine.spec import ModelSpec
from flame.errors import ExecutionError, FlameError, RequestCancelled, ShuttingDown
from flame.features.pipeline import FeaturePipeline
from flame.features.store import open_store
from flame.features.store.base import FeatureStore
from flame.features.validate import check
from flame.metrics import Metrics
from flame.orchestrator.admission import Permit
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.profiles import default_profiles
from flame.orchestrator.ticket import Scored
from flame.orchestrator.timeline import Timeline
from flame.orchestrator.workers import Workers
from flame.records import FeatureCounts, Features, RankRequest, RankResponse, Scores
from flame.statistics import Ledger, Marks, Statistics

_log = logging.getLogger(__name__)

_DEFAULTS = Config()

_LAST_GATHER_S = 5.0
"""How long `close` waits for the feature store, beyond the drain: nothing can interrupt it."""


class Answer(Future[RankResponse]):
    """The response to come. `cancel` ends it at once for who waits, and drops the work that has not begun."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = threading.Event()

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self.dropped.set()
        return cancelled


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
        self._columns = {task.name: column for column, task in enumerate(self.spec.tasks)}
        self._orchestrator = Orchestrator(self._engines, config.orchestrator, self.metrics)
        self.timeline: Timeline = self._orchestrator.timeline
        # Requests of either priority: those of one must not wait for a thread that gathers for the other.
        self._workers = Workers(2 * config.orchestrator.max_in_flight, "flame-request", features.bind_thread)
        self._ledger = Ledger(self.metrics)
        self._lock = threading.Lock()
        self._closed = False
        self._cut = 0

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
        check(request, self.spec.input, tuple(self._columns))
        if request.deadline is None and self._deadline_s:
            request = replace(request, deadline=began + self._deadline_s)
        self._orchestrator.check()
        permit = self._orchestrator.admission.admit(request)
        if permit.truncated:
            request = replace(request, candidates=request.candidates[: permit.candidates])
        answer = Answer()
        try:
            self._workers.submit(partial(self._gather, request, permit, answer, began))
        except BaseException:
            permit.release()
            raise
        return answer

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
        return self._cut

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _gather(self, request: RankRequest, permit: Permit, answer: Answer, began: float) -> None:
        """The first half of the path, on a worker: up to the queue. Whatever happens, answer and permit end."""
        admitted = time.monotonic()
        features = None
        try:
            if answer.dropped.is_set():
                raise RequestCancelled("the client went away before the work was started")
            features = self._features.gather(request)
            marks = Marks(began, admitted, time.monotonic())
            scored = self._orchestrator.submit(
                features,
                user=request.user,
                priority=request.priority,
                deadline=request.deadline,
                cancelled=answer.dropped,
                request_id=request.request_id,
            )
        except BaseException as error:
            self._give_back(features, permit)
            self._fail(answer, error, began)
        else:
            scored.add_done_callback(partial(self._respond, request, features, permit, answer, marks))
            answer.add_done_callback(partial(self._withdraw, scored))

    def _withdraw(self, scored: Future[Scored], answer: Future[RankResponse]) -> None:
        """A client who has gone leaves the queue at once, on the thread that says so."""
        if answer.cancelled():
            self._orchestrator.withdraw(scored)

    def _respond(
        self,
        request: RankRequest,
        features: Features,
        permit: Permit,
        answer: Answer,
        marks: Marks,
        scored: Future[Scored],
    ) -> None:
        """The second half, on the thread that ends the request, mostly that of its last launch: without a hand-over."""
        try:
            self._give_back(features, permit, scored.exception() or scored.result())
            response = self._response(request, features.counts, scored.result(), marks, permit.truncated)
        except BaseException as error:
            self._fail(answer, error, marks.began)
        else:
            self._ledger.succeeded(response)
            if response.truncated:
                self.metrics.truncated.inc()
            if answer.set_running_or_notify_cancel():
                answer.set_result(response)

    def _give_back(
        self, features: Features | None, permit: Permit, outcome: Scored | BaseException | None = None
    ) -> None:
        try:
            if features is not None:
                self._features.release(features)
        finally:
            permit.release(outcome)

    def _response(
        self, request: RankRequest, counts: FeatureCounts, scored: Scored, marks: Marks, truncated: bool
    ) -> RankResponse:
        tasks = request.tasks or tuple(self._columns)
        scores = _finite(scored.scores)
        if tasks != tuple(self._columns):
            scores = scores.take([self._columns[task] for task in tasks], axis=1)
        return RankResponse(
            scores=scores,
            tasks=tasks,
            model=self.spec.name,
            version=self.spec.version,
            backend=self.backend,
            counts=counts,
            times=marks.times(scored.queue_us, scored.compute_us, time.monotonic()),
            launches=scored.launches,
            history_reused=scored.reused,
            request_id=request.request_id,
            truncated=truncated,
        )

    def _fail(self, answer: Answer, error: BaseException, began: float) -> None:
        if not isinstance(error, FlameError):
            _log.error("a request failed", exc_info=error)
        self._ledger.failed((time.monotonic() - began) * 1e6)
        with self._lock:
            self._cut += isinstance(error, ShuttingDown)
        if answer.set_running_or_notify_cancel():
            answer.set_exception(error)


def _finite(scores: Scores) -> Scores:
    """`scores`, unless the model gave a candidate no number: such an answer must not look like a ranking."""
    bad = scores.size - np.count_nonzero(np.isfinite(scores))
    if bad:
        raise ExecutionError(
            f"the model gave {bad} of {scores.size} scores that are not finite; check its weights with `flame validate`"
        )
    return scores


def launch_threads(config: Config) -> int:
    """Threads of one launch: what the settings say, else the cores of this process shared by the executors."""
    return config.engine.threads or max(1, len(os.sched_getaffinity(0)) // config.orchestrator.executors)
