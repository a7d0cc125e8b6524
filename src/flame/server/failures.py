"""Any exception as the answer a client gets: the one place where errors become statuses and messages."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flame.errors import FlameError, RefusedError

logger = logging.getLogger("flame.server")

_LONGEST_MESSAGE = 1000
"""Characters of a message; a gRPC status travels in headers, which have little room."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Status and text of a failed request, for either protocol."""

    http_status: int
    grpc_code: str
    kind: str
    message: str


def explain(error: BaseException) -> Failure:
    """The answer to a request that ended in `error`.

    Errors of FLAME speak for themselves; those of the server's own side are logged too. Anything else is a defect:
    logged in full, and answered with a sentence that gives nothing away.
    """
    if not isinstance(error, FlameError):
        logger.error("unexpected error", exc_info=error)
        return Failure(
            FlameError.http_status, FlameError.grpc_code, FlameError.kind, "internal error; the server's log has it"
        )
    if error.http_status >= 500 and not isinstance(error, RefusedError):
        logger.error("%s: %s", error.kind, error, exc_info=error)
    message = str(error)
    if len(message) > _LONGEST_MESSAGE:
        message = message[: _LONGEST_MESSAGE - 3] + "..."
    return Failure(error.http_status, error.grpc_code, error.kind, message)
