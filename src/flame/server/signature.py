"""What a ranker looks like from outside: its tensors, and how they become requests and scores.

    user_id              INT64 [users, 1]
    candidates           INT64 [users, candidates]
    history_items        INT64 [users, events]      the three history tensors: all or none, oldest event first
    history_actions      INT64 [users, events]
    history_timestamps   INT64 [users, events]
    scenario             INT64 [users, 1]           optional
    <context feature>    INT32 or FP32 [users, *shape of the feature]   optional, one for each

Outputs are FP32 `[users, candidates]`, one for each task and named by it. A last dimension of 1 may be left out. In an
answer that is truncated they have fewer candidates, for all users the same number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flame.engine.spec import ModelSpec
from flame.errors import InvalidTensor, PackageError
from flame.records import History, RankRequest, RankResponse, Scores
from flame.server.oip import InferRequest, Values
from flame.server.tensors import DATATYPES, datatype_of, quoted

HISTORY = ("history_items", "history_actions", "history_timestamps")
_RESERVED = {"user_id", "candidates", *HISTORY, "scenario"}
_CONTEXT_DATATYPES = {"int32": "INT32", "float32": "FP32"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a model. -1 in `shape` is a size that the request chooses; the first is the number of users."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def check(self, values: Values) -> Values:
        """`values` with all dimensions. Raises `InvalidTensor` naming what does not fit."""
        if values.dtype != DATATYPES[self.datatype]:
            raise InvalidTensor(f"tensor {self.name!r} has datatype {datatype_of(values)}; it takes {self.datatype}")
        if self.shape[-1] == 1 and values.ndim == len(self.shape) - 1:
            values = values[..., np.newaxis]
        fits = values.ndim == len(self.shape) and all(
            want in (-1, size) for want, size in zip(self.shape, values.shape, strict=True)
        )
        if not fits:
            raise InvalidTensor(f"tensor {self.name!r} has shape {list(values.shape)}; it takes {list(self.shape)}")
        return values


class Signature:
    """Inputs and outputs of one model; made once when the server starts."""

    def __init__(self, spec: ModelSpec) -> None:
        self.context = {field.name: field for field in spec.input.context}
        self.inputs = {tensor.name: tensor for tensor in _inputs(spec)}
        self.outputs = tuple(TensorSpec(task.name, "FP32", (-1, -1)) for task in spec.tasks)
        taken = sorted(_RESERVED & self.context.keys())
        if taken:
            raise PackageError(f"context features {taken} have the names of input tensors; rename them")

    def requests(self, request: InferRequest, most: int | None = None) -> list[RankRequest]:
        """One `RankRequest` per user, in order. Raises `InvalidTensor`; what values mean is for the ranker to check.

        More users than `most` are refused before anything is made for any of them.

        Arrays are copied out of the bytes that came in: plain writable memory is what compiled code is compiled for,
        and the bytes need not be kept.
        """
        if len(set(request.outputs)) != len(request.outputs):
            raise InvalidTensor(f"an output is asked for twice in {list(request.outputs)}")
        inputs = self._checked(request.inputs)
        users = len(inputs["user_id"])
        if most is not None and users > most:
            raise InvalidTensor(f"tensor 'user_id' has {users} users; this server takes {most} in a request")
        return [self._request(request, inputs, user) for user in range(users)]

    def _request(self, request: InferRequest, inputs: Mapping[str, Values], user: int) -> RankRequest:
        return RankRequest(
            user=int(inputs["user_id"][user, 0]),
            candidates=_row(inputs["candidates"], user),
            history=History(*(_row(inputs[name], user) for name in HISTORY)) if HISTORY[0] in inputs else None,
            scenario=int(inputs["scenario"][user, 0]) if "scenario" in inputs else 0,
            context={
                name: _row(inputs[name], user).reshape(field.shape)
                for name, field in self.context.items()
                if name in inputs
            },
            tasks=request.outputs,
            deadline=request.deadline,
            request_id=request.request_id,
            priority=request.priority,
        )

    def _checked(self, given: Mapping[str, Values]) -> dict[str, Values]:
        """All tensors with their full shapes, for one number of users."""
        for name in given:
            if name not in self.inputs:
                raise InvalidTensor(f"there is no input {quoted(name)}; the model's are {', '.join(self.inputs)}")
        inputs = {name: self.inputs[name].check(values) for name, values in given.items()}
        for name in self._needed(given):
            if name not in inputs:
                raise InvalidTensor(f"input {name!r} is missing; given are {', '.join(given) or 'none'}")
        _check_sizes(inputs)
        return inputs

    def _needed(self, given: Mapping[str, Values]) -> Iterator[str]:
        yield from (name for name, tensor in self.inputs.items() if not tensor.optional)
        if any(name in given for name in HISTORY):
            yield from HISTORY


def scores_by_task(responses: Sequence[RankResponse]) -> dict[str, Scores]:
    """Scores `[users, candidates]` of each task, from one response per user.

    A tensor has no room for rows of unequal length: it has as many candidates as were scored for every user.
    """
    if len(responses) == 1:
        scores: Scores = responses[0].scores[np.newaxis]
    else:
        fewest = candidates_scored(responses)
        scores = np.stack([response.scores[:fewest] for response in responses])
    return {task: scores[..., index] for index, task in enumerate(responses[0].tasks)}


def candidates_scored(responses: Sequence[RankResponse]) -> int:
    """How many candidates were scored for every user."""
    return min(len(response.scores) for response in responses)


def _inputs(spec: ModelSpec) -> Iterator[TensorSpec]:
    yield TensorSpec("user_id", "INT64", (-1, 1))
    yield TensorSpec("candidates", "INT64", (-1, -1))
    for name in HISTORY:
        yield TensorSpec(name, "INT64", (-1, -1), optional=True)
    yield TensorSpec("scenario", "INT64", (-1, 1), optional=True)
    for field in spec.input.context:
        yield TensorSpec(field.name, _CONTEXT_DATATYPES[field.dtype], (-1, *(field.shape or (1,))), optional=True)


def _check_sizes(inputs: Mapping[str, Values]) -> None:
    users = len(inputs["user_id"])
    if users == 0:
        raise InvalidTensor("tensor 'user_id' has shape [0, 1]; a request has at least one user")
    for name, values in inputs.items():
        if len(values) != users:
            raise InvalidTensor(f"tensor {name!r} is for {len(values)} users, 'user_id' for {users}")
    events = {name: inputs[name].shape[1] for name in HISTORY if name in inputs}
    if len(set(events.values())) > 1:
        raise InvalidTensor(f"the history tensors must have equally many events, got {events}")


def _row(values: Values, user: int) -> Any:
    return values[user].copy()
