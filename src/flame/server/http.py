"""The HTTP server: our application on uvicorn, with uvloop and httptools, inside a loop that is already running."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flame.config import ServerConfig
from flame.errors import ConfigError
from flame.server.application import Application

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_MOST_HEADER_BYTES = 2**20


class _Uvicorn(uvicorn.Server):
    """uvicorn that leaves signals to the process it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(HttpToolsProtocol):
    """One connection, with the limit on request line, headers and trailers that uvicorn and its parser do not have.

    Whoever goes beyond it gets 400 and loses the connection. The count is rough: the last piece read counts in full.
    """

    _head_bytes = 0
    _in_head = False

    def on_message_begin(self) -> None:
        self._head_bytes, self._in_head = 0, True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MOST_HEADER_BYTES:
            raise ValueError("too many header bytes")  # which the parser makes an invalid request
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:  # a line that does not end reaches no callback, but is kept by the parser
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("Too many header bytes.")


class HttpServer:
    """Listens from the start, serves from `start` on."""

    def __init__(self, application: Application, config: ServerConfig) -> None:
        """Binds the port. Raises `ConfigError` where it cannot be had."""
        self._socket = _bound(config.host, config.http_port)
        self.port: int = self._socket.getsockname()[1]
        self._server = _Uvicorn(
            uvicorn.Config(
                application,
                http=_Protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to answer."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.005)
        if self._serving.done():
            await self._serving

    def close(self) -> None:
        """Gives the port back; for a server that was never started."""
        self._socket.close()

    def stop_accepting(self) -> None:
        """Closes the port and idle connections, within 0.1 s; requests that came in are still answered."""
        self._server.should_exit = True

    async def stopped(self, timeout: float) -> None:
        """Waits for the connections that are left; those that are not done in `timeout` seconds are closed."""
        assert self._serving is not None, "not started"
        done, _ = await asyncio.wait([self._serving], timeout=timeout)
        if not done:
            for connection in tuple(self._server.server_state.connections):
                connection.transport.abort()
        await self._serving


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"server.http_port: cannot listen on {host}, port {port}: {error.strerror}") from error
