"""What the server does, for both protocols: they decode, call a `Service`, and encode."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flame.config import Config
from flame.errors import EngineFailed, FlameError, RefusedError, ShuttingDown, UnknownModel
from flame.records import RankRequest, RankResponse
from flame.server import describe
from flame.server.oip import InferRequest, InferResponse
from flame.server.signature import Signature, candidates_scored, scores_by_task
from flame.server.statistics import Failures, model_statistics
from flame.server.tensors import quoted
from flame.server.traces import Traces

if TYPE_CHECKING:
    from flame.ranker import Ranker


class Service:
    """One ranker behind the network; knows nothing of HTTP or gRPC. Belongs to the thread of one event loop."""

    def __init__(self, ranker: Ranker, config: Config) -> None:
        self.spec = ranker.spec
        self.engine = f"{ranker.backend} on {ranker.device} in {ranker.precision}"
        self.metrics = ranker.metrics
        self.failed = ranker.failed
        self.signature = Signature(ranker.spec)
        self.max_users = config.orchestrator.max_in_flight
        self._ranker = ranker
        self._failures = Failures()
        self._traces = Traces(ranker.timeline)
        self._configuration = describe.configuration(
            self.spec,
            self.signature,
            backend=ranker.backend,
            device=ranker.device,
            users=self.max_users,
            executors=config.orchestrator.executors * len(ranker.devices),
        )
        self._futures: set[asyncio.Future[RankResponse]] = set()
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._cutting = False

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.obstacle is None

    @property
    def obstacle(self) -> RefusedError | None:
        """Why no request is taken, where none is."""
        if self._draining:
            return ShuttingDown("the server is shutting down and takes no new requests; use another one")
        if self.failed.done():
            return EngineFailed("the engine of this server has failed; use another one until it is restarted")
        return None

    @property
    def draining(self) -> bool:
        """Whether the server is about to end."""
        return self._draining

    @property
    def calls(self) -> int:
        """Requests being answered now."""
        return self._calls

    async def infer(self, request: InferRequest) -> InferResponse:
        """Scores for all users of `request`; one that fails fails the request, with its index in the message.

        Cancelling the caller cancels the work. Raises `FlameError`s.
        """
        self.check_model(request.model, request.version)
        with self._call():
            responses = await self._answer(self.signature.requests(request, self.max_users))
        return InferResponse(
            model=self.spec.name,
            version=self.spec.version,
            request_id=request.request_id,
            outputs=scores_by_task(responses),
            parameters=_parameters(responses),
        )

    async def rank(self, request: RankRequest) -> RankResponse:
        """Scores for one user. Cancelling the caller cancels the work. Raises `FlameError`s."""
        with self._call():
            return (await self._answer([request]))[0]

    def check_model(self, model: str, version: str = "") -> None:
        """Raises `UnknownModel` unless this server has that model in that version; empty means the one it has."""
        if model != self.spec.name:
            raise UnknownModel(f"there is no model {quoted(model)}; this server has {self.spec.name!r}")
        if version not in ("", self.spec.version):
            raise UnknownModel(
                f"model {model!r} has no version {quoted(version)}; this server has {self.spec.version!r}"
            )

    def model_metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """Raises `UnknownModel`."""
        self.check_model(model, version)
        return describe.model(self.spec, self.signature)

    def model_configuration(self, model: str, version: str = "") -> dict[str, Any]:
        """Raises `UnknownModel`."""
        self.check_model(model, version)
        return self._configuration

    def statistics(self, model: str = "", version: str = "") -> dict[str, Any]:
        """Statistics of one model, or of all where none is named. Raises `UnknownModel`."""
        if model:
            self.check_model(model, version)
        return {"model_stats": [model_statistics(self.spec, self._ranker.statistics(), self._failures)]}

    async def trace(self, seconds: float | None) -> bytearray:
        """What was done in the last `seconds`, or all that is remembered, as a Chrome trace. Raises `QueueFull`."""
        return await self._traces.trace(seconds)

    def index(self, *, only_ready: bool) -> list[dict[str, str]]:
        """The models here."""
        return [] if only_ready and not self.ready else describe.index(self.spec, self.obstacle)

    def drain(self) -> None:
        """Refuses new requests from now on."""
        self._draining = True

    async def idle(self) -> None:
        """Waits until nothing is being answered."""
        await self._idle.wait()

    def cut(self) -> int:
        """Ends what is being answered with `ShuttingDown`; how many requests that were."""
        self._cutting = True
        for future in tuple(self._futures):
            future.cancel()
        return self._calls

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Counts one request in and out, and keeps the statistics of those that fail."""
        if obstacle := self.obstacle:
            raise obstacle
        started = time.perf_counter()
        self._calls += 1
        self._idle.clear()
        try:
            yield
        except BaseException as error:
            self._failures.add(time.perf_counter() - started)
            if self._cutting and isinstance(error, asyncio.CancelledError):
                raise ShuttingDown("the server shut down before this request was done; use another one") from None
            raise
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _answer(self, requests: Sequence[RankRequest]) -> list[RankResponse]:
        futures: list[asyncio.Future[RankResponse]] = []
        try:
            for request in requests:
                futures.append(asyncio.wrap_future(self._ranker.start(request)))
                self._futures.add(futures[-1])
            return [await futures[0]] if len(futures) == 1 else await asyncio.gather(*futures)
        except FlameError as error:
            if len(requests) == 1:
                raise
            raise _of_user(error, requests, futures) from error
        finally:
            for future in futures:
                future.cancel()
                self._futures.discard(future)


def _of_user(
    error: FlameError, requests: Sequence[RankRequest], futures: Sequence[asyncio.Future[RankResponse]]
) -> FlameError:
    """`error` with the index of the user it is about: the first that could not start, or whose future has it."""
    failed = (index for index, future in enumerate(futures) if _ended_in(future, error))
    index = next(failed, len(futures))
    return type(error)(f"user_id[{index}] ({requests[index].user}): {error}")


def _ended_in(future: asyncio.Future[RankResponse], error: FlameError) -> bool:
    return future.done() and not future.cancelled() and future.exception() is error


def _parameters(responses: Sequence[RankResponse]) -> dict[str, str | int | bool]:
    """Where the scores came from, what was left out or degraded, and the stages of the user that took longest."""
    counts = [response.counts for response in responses]
    times = max((response.times for response in responses), key=lambda times: times.total)
    return {
        "backend": responses[0].backend,
        "launches": sum(response.launches for response in responses),
        "histories_reused": sum(response.history_reused for response in responses),
        "truncated": any(response.truncated for response in responses),
        "candidates_scored": candidates_scored(responses),
        "stale": sum(count.stale for count in counts),
        "missing": sum(count.missing for count in counts),
        "unknown": sum(count.unknown for count in counts),
        "unknown_users": sum(count.unknown_user for count in counts),
        "features_us": round(times.features),
        "queue_us": round(times.queue),
        "compute_us": round(times.compute),
    }
