"""Is a request one that the model can score? Everything a client can get wrong is found here, before any work."""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

import numpy as np

from flame.errors import (
    HistoryTooLong,
    InvalidCandidates,
    InvalidFeature,
    InvalidHistory,
    InvalidPriority,
    InvalidScenario,
    InvalidTensor,
    TooManyCandidates,
    UnknownTask,
)
from flame.features.rows import BadValue, field_words
from flame.features.store.history import check_types, check_values, describe
from flame.records import History, Priority, RankRequest
from flame.schema import Field, InputSchema


def check(request: RankRequest, schema: InputSchema, tasks: Collection[str]) -> None:
    """Raises the `RequestError` that names what is wrong, if something is.

    Item ids may be any int64 and may repeat: an unknown one gets default features, each occurrence its own score.
    """
    if not isinstance(request.user, int | np.integer) or not -(2**63) <= request.user < 2**63:
        raise InvalidTensor(f"user must be a 64-bit integer, got {request.user!r}")
    if not isinstance(request.request_id, str):
        raise InvalidTensor(f"request_id must be text, got {request.request_id!r}")
    _check_candidates(request, schema)
    if request.history is not None:
        _check_history(request.history, schema)
    if not isinstance(request.scenario, int | np.integer) or not 0 <= request.scenario < schema.scenarios:
        raise InvalidScenario(f"scenario {request.scenario!r} is not an integer in [0, {schema.scenarios})")
    if request.priority not in get_args(Priority):
        raise InvalidPriority(f"priority {request.priority!r} is not one of {', '.join(get_args(Priority))}")
    if request.context:
        _check_context(request, schema)
    for task in request.tasks:
        if task not in tasks:
            raise UnknownTask(f"there is no task {task!r}; the model has {', '.join(tasks)}")


def _check_candidates(request: RankRequest, schema: InputSchema) -> None:
    candidates = request.candidates
    if not isinstance(candidates, np.ndarray) or candidates.dtype != np.int64 or candidates.ndim != 1:
        raise InvalidTensor(f"candidates must be int64 of shape [candidates], got {describe(candidates)}")
    if not len(candidates):
        raise InvalidCandidates("a request needs at least one candidate")
    if len(candidates) > schema.max_candidates:
        raise TooManyCandidates(
            f"{len(candidates)} candidates are more than the model's {schema.max_candidates}; send several requests"
        )


def _check_history(history: History, schema: InputSchema) -> None:
    try:
        check_types(history)
    except ValueError as error:
        raise InvalidTensor(f"history: {error}") from None
    try:
        check_values(history, schema.actions)
    except ValueError as error:
        raise InvalidHistory(f"history: {error}") from None
    if len(history.items) > schema.max_history:
        raise HistoryTooLong(
            f"{len(history.items)} history events are more than the model's {schema.max_history}; send the newest"
        )


def _check_context(request: RankRequest, schema: InputSchema) -> None:
    fields: dict[str, Field] = {field.name: field for field in schema.context}
    for name, value in request.context.items():
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise InvalidFeature(f"there is no context feature {name!r}; the model has {known}")
        try:
            field_words(fields[name], np.asarray(value)[None])
        except BadValue as error:
            raise InvalidFeature(f"context feature {name!r}: {error.reason}") from None
        except (ValueError, OverflowError) as error:
            raise InvalidFeature(f"context feature {name!r} is not an array of numbers: {error}") from None
