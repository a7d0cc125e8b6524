"""Who is served first, as clients say it: `interactive` or `batch`.

The parameter `priority` (of an Open Inference Protocol request or of `/v1/rank`) and the HTTP header
`X-Request-Priority`; where both are given, the parameter counts. Clients of the protocol that know numbers only, the
lower the sooner, say 1 for interactive and 2 for batch; 0 is the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flame.errors import InvalidPriority
from flame.records import Priority
from flame.server.tensors import quoted

HEADER = "X-Request-Priority"

_WORDS: dict[Any, Priority] = {"interactive": "interactive", "batch": "batch"}
_NUMBERS: dict[Any, Priority] = {0: "interactive", 1: "interactive", 2: "batch"}


def from_parameters(parameters: Mapping[str, Any], header: Priority | None = None) -> Priority:
    """The priority in the parameters of a request, else that of its header, else the default.

    Raises `InvalidPriority`.
    """
    value = parameters.get("priority")
    if value is None:
        return header or "interactive"
    number = isinstance(value, int) and not isinstance(value, bool)
    found = (_NUMBERS if number else _WORDS).get(value) if isinstance(value, int | str) else None
    if found is None:
        raise InvalidPriority(
            f"parameter 'priority' is {quoted(str(value))}; it takes 'interactive' or 'batch', or 1 or 2 for these"
        )
    return found


def from_header(value: str) -> Priority:
    """The priority in a header. Raises `InvalidPriority`."""
    found = _WORDS.get(value.strip().lower())
    if found is None:
        raise InvalidPriority(f"header {HEADER} is {quoted(value)}; it takes interactive or batch")
    return found
