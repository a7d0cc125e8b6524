"""When a request has to be answered: the earliest of all the deadlines its client gave.

In milliseconds from the moment the request came in: the parameter `deadline_ms` (of an Open Inference Protocol request
or of `/v1/rank`), the HTTP header `X-Request-Deadline-Ms`, and the deadline of a gRPC call. The protocol's own
parameter `timeout`, in microseconds, counts too. One that is not above 0 has passed already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flame.errors import MalformedRequest
from flame.server.tensors import quoted

HEADER = "X-Request-Deadline-Ms"

_LONGEST = 1e15
"""Far beyond any wait, and far below what a float or a timer cannot hold."""


def from_parameters(parameters: Mapping[str, Any], arrival: float) -> float | None:
    """The deadline in the parameters of a request that came at `arrival`, a point of `time.monotonic()`."""
    milliseconds = _number(parameters, "deadline_ms")
    microseconds = _number(parameters, "timeout")
    return earliest(
        None if milliseconds is None else arrival + milliseconds / 1e3,
        None if microseconds is None else arrival + microseconds / 1e6,
    )


def from_header(value: str, arrival: float) -> float:
    """The deadline in a header of a request that came at `arrival`. Raises `MalformedRequest`."""
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if not abs(milliseconds) < _LONGEST:
        raise MalformedRequest(f"header {HEADER} is {quoted(value)}; it takes a number of milliseconds")
    return arrival + milliseconds / 1e3


def earliest(*deadlines: float | None) -> float | None:
    """The first of several deadlines; None where there is none."""
    return min((deadline for deadline in deadlines if deadline is not None), default=None)


def _number(parameters: Mapping[str, Any], name: str) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LONGEST:
        raise MalformedRequest(f"parameter {name!r} is {quoted(str(value))}; it takes a number below {_LONGEST:g}")
    return float(value)
