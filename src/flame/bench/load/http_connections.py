"""A small HTTP/1.1 client with kept connections, made for one thing: prepared requests at a low cost per request."""

from __future__ import annotations

import asyncio
from typing import cast

import httptools


class NotConnected(ConnectionError):
    """No connection could be opened; nothing was sent."""


class Answer:
    """One parsed response: status, headers with lower-case names, body."""

    __slots__ = ("body", "headers", "keep_alive", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keep_alive = True


class Connection(asyncio.Protocol):
    """One connection with at most one request on it at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._parts: list[bytes] = []

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, message: bytes) -> asyncio.Future[Answer]:
        """Writes a whole request; the future gives its answer or raises `ConnectionError`."""
        if self._transport is None:
            raise ConnectionError("the server closed the connection")
        assert self._waiter is None, "one request at a time"
        self._waiter = asyncio.get_running_loop().create_future()
        self._answer, self._parts = Answer(), []
        self._transport.write(message)
        return self._waiter

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"not an HTTP answer: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    # What httptools calls while it reads.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        answer = self._answer
        answer.status = self._parser.get_status_code()
        answer.keep_alive = self._parser.should_keep_alive()
        answer.body = b"".join(self._parts)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)
        if not answer.keep_alive:
            self.close()


class Connections:
    """At most `most` connections to one server, opened when they are first needed.

    A request that finds all of them taken waits for one; for a load generator that wait is part of its latency.
    """

    def __init__(self, host: str, port: int, most: int) -> None:
        self._host, self._port = host, port
        self._permits = asyncio.Semaphore(most)
        self._idle: list[Connection] = []

    async def ask(self, message: bytes) -> Answer:
        """One request and its answer. Raises `NotConnected` or, once the request was sent, `ConnectionError`."""
        async with self._permits:
            connection = await self._take()
            try:
                answer = await connection.ask(message)
            except asyncio.CancelledError:
                connection.close()
                raise
            if answer.keep_alive:
                self._idle.append(connection)
            return answer

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        try:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        except OSError as error:
            raise NotConnected(str(error)) from error
        return connection
