"""`POST /v1/rank`: one user and candidates in plain JSON, for people and for `curl`.

    {"user": 42, "candidates": [1, 2, 3],
     "history": {"items": [7, 8], "actions": [0, 1], "timestamps": [1700000000, 1700000060]},
     "scenario": 0, "context": {"hour": 17}, "tasks": ["click"], "deadline_ms": 50, "priority": "batch",
     "request_id": "a"}

All but `user` and `candidates` may be left out. The answer holds the scores of each task in the order of `candidates`.
One that is `truncated` names and scores the first `candidates_scored` of the request's candidates only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from flame.errors import FlameError, InvalidCandidates, InvalidFeature, InvalidHistory, MalformedRequest
from flame.records import History, Ids, Priority, RankRequest, RankResponse, StageTimes
from flame.schema import Field
from flame.server import deadline, priority
from flame.server.tensors import quoted

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class _History(msgspec.Struct, forbid_unknown_fields=True):
    items: list[int]
    actions: list[int]
    timestamps: list[int]


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    user: Int64
    candidates: list[int]
    history: _History | None = None
    scenario: Int64 = 0
    context: dict[str, Any] = {}
    tasks: list[str] = []
    deadline_ms: float | None = None
    priority: str | int | None = None
    request_id: str = ""


_decoder = msgspec.json.Decoder(_Body)


def decode(
    body: bytes,
    context: Mapping[str, Field],
    arrival: float,
    header_deadline: float | None,
    header_priority: Priority | None = None,
) -> RankRequest:
    """The request in `body`; `context` are the model's context features by name. Raises `RequestError`s."""
    try:
        content = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the body is not a rank request in JSON: {error}") from error
    own = deadline.from_parameters({"deadline_ms": content.deadline_ms}, arrival)
    return RankRequest(
        user=content.user,
        candidates=_ids(content.candidates, "candidates", InvalidCandidates),
        history=_history(content.history),
        scenario=content.scenario,
        context={name: _feature(name, value, context) for name, value in content.context.items()},
        tasks=tuple(content.tasks),
        deadline=deadline.earliest(own, header_deadline),
        request_id=content.request_id,
        priority=priority.from_parameters({"priority": content.priority}, header_priority),
    )


def encode(request: RankRequest, response: RankResponse) -> bytes:
    """The answer to `request`: scores by task, where they came from, what was degraded, and the times in ms."""
    counts = response.counts
    return msgspec.json.encode(
        {
            "user": request.user,
            "candidates": request.candidates[: len(response.scores)].tolist(),
            "scores": {task: response.scores[:, index].tolist() for index, task in enumerate(response.tasks)},
            "model": response.model,
            "version": response.version,
            "backend": response.backend,
            "truncated": response.truncated,
            "candidates_scored": len(response.scores),
            "degraded": counts.degraded,
            "features": msgspec.to_builtins(counts),
            "times_ms": _milliseconds(response.times),
            "launches": response.launches,
            "history_reused": response.history_reused,
            "request_id": response.request_id,
        }
    )


def _milliseconds(times: StageTimes) -> dict[str, float]:
    stages: dict[str, float] = msgspec.to_builtins(times)
    return {stage: round(microseconds / 1e3, 3) for stage, microseconds in stages.items()}


def _history(content: _History | None) -> History | None:
    if content is None:
        return None
    columns = ((name, getattr(content, name)) for name in ("items", "actions", "timestamps"))
    return History(*(_ids(values, f"history.{name}", InvalidHistory) for name, values in columns))


def _ids(values: Sequence[int], name: str, error: type[FlameError]) -> Ids:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        beyond = next(value for value in values if not -(2**63) <= value < 2**63)
        raise error(f"{name} has {quoted(str(beyond))}, which is no 64-bit integer") from None


def _feature(name: str, value: Any, context: Mapping[str, Field]) -> NDArray[np.generic]:
    """A context feature as an array of its field's dtype; what it may hold is checked with all features."""
    field = context.get(name)
    if field is None:
        known = ", ".join(context) or "none"
        raise InvalidFeature(f"there is no context feature {quoted(name)}; the model's are {known}")
    number: Any = int if field.dtype == "int32" else float
    for _ in field.shape:
        number = list[number]
    try:
        with np.errstate(over="ignore"):  # too large for float32 is infinity, refused with all other features
            return np.array(msgspec.convert(value, number), field.dtype)
    except (msgspec.ValidationError, OverflowError, ValueError) as error:
        raise InvalidFeature(f"context feature {name!r} is not {field.dtype} {list(field.shape)}: {error}") from error
