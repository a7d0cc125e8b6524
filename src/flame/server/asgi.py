"""The small part of ASGI that FLAME speaks: a request as a record, an answer as a record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON = b"application/json"
BINARY = b"application/octet-stream"
TEXT = b"text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request with its body. Header names are lower case; `arrival` is a point of `time.monotonic()`; `query`
    is what follows `?` in the URL."""

    headers: Mapping[bytes, bytes]
    body: bytes
    arrival: float
    query: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer."""

    body: bytes | bytearray = b""
    content_type: bytes = JSON
    status: int = 200
    headers: tuple[Header, ...] = ()


def json_response(content: Any, status: int = 200, headers: tuple[Header, ...] = ()) -> Response:
    """`content` as JSON."""
    return Response(msgspec.json.encode(content), JSON, status, headers)


async def start(send: Send, response: Response, *, ends: bool) -> None:
    """Sends everything of `response`; unless it `ends` here, all but the note that it does."""
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", b"%d" % len(response.body)),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": not ends})


async def finish(send: Send) -> None:
    """Ends an answer that was started."""
    await send({"type": "http.response.body", "body": b"", "more_body": False})
