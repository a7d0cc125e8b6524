"""A server from start to end: both protocols on one event loop, and a clean shutdown.

On SIGTERM or SIGINT: not ready; stop accepting; wait for what is being answered, at most `server.drain_s`; cut the
rest and say how many; close the ranker; write the trace, where one is asked for. A second signal skips the wait.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import uvloop

from flame.config import Config
from flame.errors import ConfigError
from flame.ranker import Ranker
from flame.server.announce import announcement
from flame.server.application import Application
from flame.server.calls import Calls
from flame.server.grpc import GrpcServer
from flame.server.http import HttpServer
from flame.server.routes import Routes
from flame.server.service import Service
from flame.server.traces import TraceFile

_print = functools.partial(print, flush=True)

_FLUSH_S = 1.0
"""How long answers that are already made may take to reach their clients."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a server listens, with the real port numbers."""

    host: str
    http_port: int
    grpc_port: int


def serve(
    ranker: Ranker,
    config: Config,
    *,
    ready: Callable[[Endpoints], None] | None = None,
    say: Callable[[str], None] = _print,
) -> int:
    """Serves `ranker` until a signal ends it; how many requests were cut. Closes the ranker, also on failure.

    Called in the main thread. `ready` is called in it, once, when requests are answered; `say` gets what a person at
    the terminal should read. Raises `ConfigError` where a port cannot be had, or `server.trace` cannot be written.

    While it serves, Python's garbage collector leaves alone what was there before: hundreds of thousands of objects of
    libraries, which a full collection would look through for a fifth of a second with every request waiting.
    """
    end = _End(cut=0, drain_left_s=0.0)
    trace = None
    try:
        trace = TraceFile(config.server.trace) if config.server.trace else None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            end = runner.run(_Server(ranker, config, say).run(ready))
    finally:
        gc.unfreeze()
        ranker.close(end.drain_left_s)
    if trace:
        say(trace.write(ranker.timeline))
    return end.cut


@dataclass(frozen=True, slots=True)
class _End:
    """How a server ended: requests cut, and seconds that were left to wait."""

    cut: int
    drain_left_s: float


class _Server:
    """Both protocols in front of one service, in one event loop."""

    def __init__(self, ranker: Ranker, config: Config, say: Callable[[str], None]) -> None:
        self._ranker = ranker
        self._config = config
        self._say = say

    async def run(self, ready: Callable[[Endpoints], None] | None) -> _End:
        """Serves until a signal comes, and shuts down."""
        settings = self._config.server
        service = Service(self._ranker, self._config)
        text = ""
        routes = Routes(service, lambda: text)
        http = HttpServer(Application(service, routes, settings.max_body_bytes), settings)
        try:
            grpc = GrpcServer(Calls(service), settings)
        except ConfigError:
            http.close()
            raise
        text = announcement(service, settings, http.port, grpc.port)
        stop, force = _signals()
        await http.start()
        await grpc.start()
        gc.collect()
        gc.freeze()
        self._say(text)
        if ready:
            ready(Endpoints(settings.host, http.port, grpc.port))
        failure = asyncio.create_task(_when_done(service.failed, grpc.not_serving))
        await stop.wait()
        failure.cancel()
        return await self._shut_down(service, http, grpc, force)

    async def _shut_down(self, service: Service, http: HttpServer, grpc: GrpcServer, force: asyncio.Event) -> _End:
        drain_s = self._config.server.drain_s
        until = time.monotonic() + drain_s
        service.drain()
        self._say(f"Shutting down: {service.calls} requests in flight have at most {drain_s:g} s to finish")
        await grpc.not_serving()
        http.stop_accepting()
        draining = asyncio.create_task(grpc.stop(drain_s + _FLUSH_S))
        await _first(service.idle(), force.wait(), timeout=drain_s)
        cut = service.cut()
        await _first(service.idle(), timeout=_FLUSH_S)
        await asyncio.gather(http.stopped(_FLUSH_S), grpc.stop(_FLUSH_S), draining)
        self._say(f"Stopped: cut {cut} requests that were not done" if cut else "Stopped: every request was answered")
        return _End(cut, 0.0 if force.is_set() else max(0.0, until - time.monotonic()))


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events of the first and of the second signal to end."""
    stop, force = asyncio.Event(), asyncio.Event()

    def received() -> None:
        (force if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received)
    return stop, force


async def _when_done(future: Future[None], do: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await asyncio.wrap_future(future)
    await do()


async def _first(*waits: Coroutine[Any, Any, Any], timeout: float) -> None:
    """Waits until one of `waits` is done, at most `timeout` seconds."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
