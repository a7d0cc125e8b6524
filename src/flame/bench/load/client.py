"""What the load generator needs of a protocol: send one prepared message, say how it went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

OK = "ok"


class Reply(NamedTuple):
    """How one request ended.

    `outcome` is "ok" or the kind of error: a `kind` of `flame.errors` where the server names one, else what the
    protocol knows ("http_502", "unavailable"), "disconnected", "cannot_connect" or "bad_answer". `stages` are the
    microseconds per stage that the server reports, empty where it reports none.
    """

    outcome: str
    stages: Mapping[str, float] = {}


class Client(Protocol):
    """Sends messages of one protocol to one server. Used from one event loop; many `send` may run at a time."""

    async def send(self, message: bytes) -> Reply:
        """Sends one prepared message and waits for its answer. A failed request is a `Reply`, not an exception.

        When cancelled (the generator gave the request up) it frees what it held and leaves nothing behind that
        could be taken for the answer of another request.
        """

    async def close(self) -> None:
        """Closes all connections."""
