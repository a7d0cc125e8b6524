"""Every wrong request has its own error, which names the value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from flame.errors import (
    HistoryTooLong,
    InvalidCandidates,
    InvalidFeature,
    InvalidHistory,
    InvalidScenario,
    InvalidTensor,
    RequestError,
    TooManyCandidates,
    UnknownTask,
)
from flame.features.validate import check
from flame.records import History, RankRequest
from flame.schema import InputSchema


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


GOOD = RankRequest(
    user=-5,
    candidates=ints(3, 3, -1, 0, 2**62),
    history=History(ints(1, 1, -7), ints(0, 3, 1), ints(0, 5, 5)),
    scenario=2,
    context={"hour": 23, "place": np.array([1, 2])},
    tasks=("like",),
)
HISTORY = GOOD.history
assert HISTORY is not None


def test_what_is_right_passes(schema: InputSchema) -> None:
    check(GOOD, schema, ("click", "like"))
    check(RankRequest(user=1, candidates=ints(1)), schema, ("click",))
    check(replace(GOOD, history=History(ints(), ints(), ints())), schema, ("like",))
    frozen = np.frombuffer(ints(1, 2).tobytes(), np.int64)
    check(replace(GOOD, candidates=frozen, history=History(frozen, frozen, frozen)), schema, ("like",))
    full = np.zeros(64, np.int64)
    check(replace(GOOD, candidates=np.zeros(200, np.int64), history=History(full, full, full)), schema, ("like",))


WRONG: list[tuple[str, dict[str, Any], type[RequestError], str]] = [
    ("user-text", {"user": "7"}, InvalidTensor, "user must be a 64-bit integer, got '7'"),
    ("request-id", {"request_id": 5}, InvalidTensor, "request_id must be text, got 5"),
    ("user-big", {"user": 2**63}, InvalidTensor, "got 9223372036854775808"),
    ("no-candidates", {"candidates": ints()}, InvalidCandidates, "at least one candidate"),
    (
        "many",
        {"candidates": np.zeros(201, np.int64)},
        TooManyCandidates,
        "201 candidates are more than the .* 200",
    ),
    ("int32", {"candidates": np.zeros(3, np.int32)}, InvalidTensor, r"must be int64 of .*, got int32 of shape \[3\]"),
    ("2d", {"candidates": np.zeros((1, 3), np.int64)}, InvalidTensor, r"got int64 of shape \[1, 3\]"),
    ("list", {"candidates": [1, 2]}, InvalidTensor, "got list"),
    (
        "h-int32",
        {"history": replace(HISTORY, actions=np.zeros(3, np.int32))},
        InvalidTensor,
        "history: actions must be",
    ),
    ("h-2d", {"history": replace(HISTORY, items=np.zeros((3, 1), np.int64))}, InvalidTensor, "history: items must be"),
    ("h-none", {"history": replace(HISTORY, timestamps=None)}, InvalidTensor, "timestamps must be .* got NoneType"),
    ("h-unequal", {"history": replace(HISTORY, actions=ints(1, 1))}, InvalidHistory, "one length, got 3, 2 and 3"),
    (
        "h-action",
        {"history": replace(HISTORY, actions=ints(0, 4, 1))},
        InvalidHistory,
        r"action 4 of event 1 is",
    ),
    ("h-negative", {"history": replace(HISTORY, actions=ints(-1, 4, 1))}, InvalidHistory, r"action -1 of event 0"),
    ("h-order", {"history": replace(HISTORY, timestamps=ints(5, 9, 8))}, InvalidHistory, "event 2 has 8 after 9;"),
    ("h-time", {"history": replace(HISTORY, timestamps=ints(-1, 0, 1))}, InvalidHistory, "timestamp -1 of event 0"),
    (
        "h-long",
        {"history": History(*[np.zeros(65, np.int64)] * 3)},
        HistoryTooLong,
        "65 history events are more than the model's 64",
    ),
    ("scenario", {"scenario": 3}, InvalidScenario, r"scenario 3 is not an integer in \[0, 3\)"),
    ("scenario-neg", {"scenario": -1}, InvalidScenario, "scenario -1"),
    ("scenario-float", {"scenario": 1.5}, InvalidScenario, "scenario 1.5"),
    ("context", {"context": {"day": 1}}, InvalidFeature, "no context feature 'day'; the model has hour, place"),
    ("c-shape", {"context": {"place": [1.0]}}, InvalidFeature, r"'place': shape \(1,\) where \(2,\) is needed"),
    ("c-scalar", {"context": {"hour": [[1, 2]]}}, InvalidFeature, r"'hour': shape \(1, 2\)"),
    ("c-nan", {"context": {"place": [1.0, float("nan")]}}, InvalidFeature, "'place': nan is not in"),
    ("c-inf", {"context": {"place": [float("-inf"), 0]}}, InvalidFeature, "'place': -inf is not in"),
    ("c-vocabulary", {"context": {"hour": 24}}, InvalidFeature, r"'hour': 24 is not in \[0, 24\)"),
    ("c-text", {"context": {"hour": "x"}}, InvalidFeature, "'hour': <U1 values"),
    ("c-object", {"context": {"hour": 2**70}}, InvalidFeature, "'hour': object values"),
    ("c-ragged", {"context": {"place": [[1], 2]}}, InvalidFeature, "'place' is not an array of numbers"),
    ("task", {"tasks": ("like", "buy")}, UnknownTask, "no task 'buy'; the model has click, like"),
]


@pytest.mark.parametrize(("change", "kind", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_what_is_wrong_is_named(
    schema: InputSchema, change: dict[str, Any], kind: type[RequestError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        check(replace(GOOD, **change), schema, ("click", "like"))
