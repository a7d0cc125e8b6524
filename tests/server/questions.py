"""Requests for the tiny model, what the oracle answers, and what an error looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.errors import FlameError
from flame.ranker import Ranker
from flame.server.oip import InferRequest
from flame.server.signature import Signature
from tests.server.asking import Question, Reply
from tests.server.tiny_server import ITEMS, USERS

TOLERANCE = 1e-4


def tensors(users: int = 1, candidates: int = 7, seed: int = 0, history: bool = False) -> dict[str, NDArray[Any]]:
    """Inputs for known users and items, with context and, if asked for, a history of their own."""
    random = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {
        "user_id": random.integers(1, USERS, (users, 1)),
        "candidates": random.integers(1, ITEMS, (users, candidates)),
        "scenario": random.integers(0, 3, (users, 1)),
        "hour": random.integers(0, 25, (users, 1)).astype(np.int32),
        "battery": random.random((users, 1)).astype(np.float32),
    }
    if history:
        events = int(random.integers(0, 38))
        inputs["history_items"] = random.integers(1, ITEMS, (users, events))
        inputs["history_actions"] = random.integers(0, 5, (users, events))
        inputs["history_timestamps"] = np.sort(random.integers(0, 10**6, (users, events)), axis=1)
    return inputs


def slow(milliseconds: int, candidates: int = 3) -> Question:
    """A request whose features take at least so long to read."""
    return Question({"user_id": np.array([[10_000 + milliseconds]]), "candidates": np.arange(1, candidates + 1)[None]})


def oracle_scores(oracle: Ranker, question: Question) -> dict[str, NDArray[np.float32]]:
    """Scores `[users, candidates]` by task, one user after the other."""
    request = InferRequest(question.model, "", question.inputs, question.outputs)
    responses = [oracle.rank(own) for own in Signature(oracle.spec).requests(request)]
    tasks = responses[0].tasks
    return {task: np.stack([own.scores[:, index] for own in responses]) for index, task in enumerate(tasks)}


def difference(one: dict[str, NDArray[np.float32]], other: Reply) -> float:
    """The largest difference of any score; infinite where tasks or shapes differ."""
    if one.keys() != other.outputs.keys():
        return float("inf")
    pairs = [(one[task], other.outputs[task]) for task in one]
    if any(mine.shape != theirs.shape for mine, theirs in pairs):
        return float("inf")
    return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)


GOOD = Question(tensors())


def changed(**inputs: Any) -> Question:
    """The good request with some inputs replaced, or taken out where the value is None."""
    given = {name: values for name, values in (GOOD.inputs | inputs).items() if values is not None}
    return Question(given)


def check(reply: Reply, error: type[FlameError], said: str) -> None:
    """Asserts that a reply is this error, with the status of its protocol, and says so."""
    assert reply.kind == error.kind, reply
    assert reply.status in (error.http_status, error.grpc_code)
    assert said in reply.message
