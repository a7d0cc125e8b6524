"""`POST /v1/rank`: JSON that people write."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.errors import (
    FlameError,
    InvalidCandidates,
    InvalidFeature,
    InvalidHistory,
    InvalidPriority,
    MalformedRequest,
    RequestError,
)
from flame.records import FeatureCounts, RankRequest, RankResponse, StageTimes
from flame.schema import Field
from flame.server import rank_json

CONTEXT = {
    field.name: field
    for field in (
        Field("hour", "int32", vocabulary=25),
        Field("battery", "float32"),
        Field("place", "float32", shape=(2,)),
    )
}
LEAST = {"user": 42, "candidates": [3, 1, 2]}


def decode(content: Any) -> RankRequest:
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return rank_json.decode(body, CONTEXT, 100.0, None)


def test_the_least_request() -> None:
    request = decode(LEAST)
    assert (request.user, request.candidates.tolist(), request.candidates.dtype) == (42, [3, 1, 2], np.int64)
    assert (request.history, request.scenario, request.tasks, request.deadline) == (None, 0, (), None)


def test_the_full_request() -> None:
    request = decode(
        LEAST
        | {
            "history": {"items": [7], "actions": [1], "timestamps": [1_700_000_000]},
            "scenario": 2,
            "context": {"hour": 17, "battery": 1, "place": [0.5, 2]},
            "tasks": ["like"],
            "deadline_ms": 50,
            "priority": "batch",
            "request_id": "a",
        }
    )
    assert request.history is not None
    assert request.history.timestamps.tolist() == [1_700_000_000]
    assert [np.asarray(value).dtype for value in request.context.values()] == [np.int32, np.float32, np.float32]
    assert np.asarray(request.context["place"]).tolist() == [0.5, 2]
    assert (request.scenario, request.tasks, request.request_id) == (2, ("like",), "a")
    assert (request.deadline, request.priority) == (100.05, "batch")


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"", MalformedRequest, "truncated"),
        (b"user=1", MalformedRequest, "malformed"),
        ({"candidates": [1]}, MalformedRequest, "user"),
        ({"user": 1}, MalformedRequest, "candidates"),
        (LEAST | {"user": "a"}, MalformedRequest, "$.user"),
        (LEAST | {"user": 2**63}, MalformedRequest, "$.user"),
        (LEAST | {"candidate": []}, MalformedRequest, "candidate"),
        (LEAST | {"candidates": [1, "2"]}, MalformedRequest, "candidates[1]"),
        (LEAST | {"candidates": [1, 2.5]}, MalformedRequest, "candidates[1]"),
        (LEAST | {"candidates": [1, -(2**63) - 1]}, InvalidCandidates, str(-(2**63) - 1)),
        (LEAST | {"history": {"items": [1]}}, MalformedRequest, "actions"),
        (LEAST | {"history": {"items": [2**64], "actions": [0], "timestamps": [0]}}, InvalidHistory, "history.items"),
        (LEAST | {"context": {"hours": 1}}, InvalidFeature, "'hours'"),
        (LEAST | {"context": {"hour": 1.5}}, InvalidFeature, "hour"),
        (LEAST | {"context": {"hour": True}}, InvalidFeature, "hour"),
        (LEAST | {"context": {"hour": 2**31}}, InvalidFeature, "hour"),
        (LEAST | {"context": {"battery": "full"}}, InvalidFeature, "battery"),
        (LEAST | {"context": {"battery": None}}, InvalidFeature, "battery"),
        (LEAST | {"context": {"place": 0.5}}, InvalidFeature, "place"),
        (LEAST | {"context": {"place": [[0.5, 1]]}}, InvalidFeature, "place"),
        (b'{"user": 1, "candidates": [1], "context": {"battery": NaN}}', MalformedRequest, "malformed"),
        (LEAST | {"priority": "urgent"}, InvalidPriority, "'urgent'"),
        (LEAST | {"priority": -1}, InvalidPriority, "'-1'"),
        (LEAST | {"priority": True}, MalformedRequest, "$.priority"),
    ],
)
def test_what_is_wrong_is_named(content: Any, error: type[FlameError], said: str) -> None:
    with pytest.raises(error) as caught:
        decode(content)
    assert said in str(caught.value)


def test_the_answer_has_scores_by_task_and_all_that_made_them() -> None:
    scores = np.array([[0.5, 0.25], [1.0, 0.0], [0.125, 0.75]], np.float32)
    times = StageTimes(10.0, 250.0, 0.0, 5000.0, 40.0, 5300.0)
    counts = FeatureCounts(unknown=1)
    response = RankResponse(scores, ("like", "share"), "m", "1", "eager", counts, times, 2, "a")
    answer = msgspec.json.decode(rank_json.encode(decode(LEAST), response))
    assert answer["scores"] == {"like": [0.5, 1.0, 0.125], "share": [0.25, 0.0, 0.75]}
    assert answer["candidates"] == [3, 1, 2]
    assert answer["degraded"] is True
    assert answer["features"] == {"stale": 0, "missing": 0, "unknown": 1, "unknown_user": False}
    assert answer["times_ms"] == {
        "admission": 0.01, "features": 0.25, "queue": 0.0, "compute": 5.0, "respond": 0.04, "total": 5.3
    }  # fmt: skip
    assert (answer["model"], answer["version"], answer["backend"], answer["launches"]) == ("m", "1", "eager", 2)
    assert (answer["truncated"], answer["candidates_scored"]) == (False, 3)


def test_a_truncated_answer_names_the_candidates_it_has_scores_of() -> None:
    times, counts = StageTimes(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), FeatureCounts()
    scores = np.array([[0.5], [1.0]], np.float32)
    response = RankResponse(scores, ("like",), "m", "1", "eager", counts, times, 1, truncated=True)
    answer = msgspec.json.decode(rank_json.encode(decode(LEAST), response))
    assert (answer["candidates"], answer["scores"]) == ([3, 1], {"like": [0.5, 1.0]})
    assert (answer["truncated"], answer["candidates_scored"]) == (True, 2)


def test_a_priority_of_the_body_wins_over_that_of_the_header() -> None:
    bodies = [LEAST, LEAST | {"priority": 1}, LEAST | {"priority": 2}, LEAST | {"priority": 0}]
    decoded = [rank_json.decode(msgspec.json.encode(body), CONTEXT, 0.0, None, "batch") for body in bodies]
    assert [request.priority for request in decoded] == ["batch", "interactive", "batch", "interactive"]


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_request_or_a_request_error(body: bytes) -> None:
    with contextlib.suppress(RequestError):
        decode(body)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["user", "candidates", "history", "scenario", "context", "tasks", "deadline_ms", "priority"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["hour", "place", "items", "actions", "timestamps"]), inner, max_size=3
                )
            ),
        ),
    )
)
def test_anything_like_a_request_is_one_or_a_request_error(content: dict[str, Any]) -> None:
    with contextlib.suppress(RequestError):
        decode(LEAST | content)
