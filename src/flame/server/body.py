"""Reading the body of an HTTP request: never more of it than the server takes, compressed or not."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Mapping

from flame.errors import BodyTooLarge, MalformedRequest, RequestCancelled
from flame.server.asgi import Receive
from flame.server.tensors import quoted

_ANY_ZLIB_HEADER = 32 + zlib.MAX_WBITS
_ENCODINGS = ("gzip", "deflate")
_LINGER_S = 2.0


async def read(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body, decompressed. Raises `BodyTooLarge`, `MalformedRequest` or `RequestCancelled`.

    A body that says at its start that it is too large is not read at all.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(int(declared), limit)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestCancelled(f"the client went away after {size} bytes of the body")
        chunks.append(message["body"])
        size += len(chunks[-1])
        if size > limit:
            raise _too_large(size, limit)
        more = message["more_body"]
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
    return body if encoding == "identity" else _decompressed(body, encoding, limit)


async def discard(receive: Receive) -> None:
    """Throws away what a client still sends of a refused body, for a short time.

    Closing a connection on a client that is still writing can destroy the answer that lies in its input.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            message = await receive()
            while message["type"] == "http.request" and message["more_body"]:
                message = await receive()


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding not in _ENCODINGS:
        raise MalformedRequest(f"content-encoding {quoted(encoding)} is not one of identity, {', '.join(_ENCODINGS)}")
    stream = zlib.decompressobj(_ANY_ZLIB_HEADER)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedRequest(f"the body is not {encoding}: {error}") from error
    if len(plain) > limit:
        raise _too_large(len(plain), limit)
    if not stream.eof or stream.unused_data:
        raise MalformedRequest(f"the {encoding} body is cut off or goes on after its end")
    return plain


def _too_large(size: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {size} bytes or more, server.max_body_bytes is {limit}; send less at a time")
