"""Whole HTTP requests as bytes, and the scores in an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from flame.bench.load.client import LoadError
from flame.records import History, RankRequest, Scores

JSON_BYTES = b"inference-header-content-length"


def tensors(request: RankRequest) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The input tensors `[1, n]` of a request."""
    yield "user_id", np.array([[request.user]], np.int64)
    yield "candidates", request.candidates[np.newaxis]
    if request.history is not None:
        yield "history_items", request.history.items[np.newaxis]
        yield "history_actions", request.history.actions[np.newaxis]
        yield "history_timestamps", request.history.timestamps[np.newaxis]
    yield "scenario", np.array([[request.scenario]], np.int64)


def infer(request: RankRequest, model: str, host: str, deadline_ms: float | None) -> bytes:
    """An inference request with binary tensors both ways."""
    parts = list(tensors(request))
    inputs = [
        {"name": name, "datatype": "INT64", "shape": values.shape, "parameters": {"binary_data_size": values.nbytes}}
        for name, values in parts
    ]
    parameters: dict[str, Any] = {"binary_data_output": True}
    if deadline_ms is not None:
        parameters["deadline_ms"] = deadline_ms
    text = msgspec.json.encode({"parameters": parameters, "inputs": inputs})
    body = b"".join([text, *(values.tobytes() for _, values in parts)])
    return call("POST", f"/v2/models/{model}/infer", host, body, f"Inference-Header-Content-Length: {len(text)}\r\n")


def rank(request: RankRequest, host: str, deadline_ms: float | None) -> bytes:
    """A `/v1/rank` request in JSON."""
    content: dict[str, Any] = {
        "user": request.user,
        "candidates": request.candidates.tolist(),
        "scenario": request.scenario,
    }
    if request.history is not None:
        content["history"] = _columns(request.history)
    if deadline_ms is not None:
        content["deadline_ms"] = deadline_ms
    return call("POST", "/v1/rank", host, msgspec.json.encode(content), "Content-Type: application/json\r\n")


def call(method: str, path: str, host: str, body: bytes, headers: str = "") -> bytes:
    """Any request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def scores(body: bytes, json_bytes: bytes | None, tasks: Sequence[str]) -> Scores:
    """Scores `[candidates, tasks]` of an answer with binary tensors. Raises `LoadError` where it has others."""
    if json_bytes is None:
        raise LoadError("the answer has no binary tensors, which were asked for")
    head = msgspec.json.decode(body[: int(json_bytes)])
    found, position = {}, int(json_bytes)
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = np.frombuffer(body[position : position + size], "<f4")
        position += size
    return by_task(found, tasks)


def by_task(found: Mapping[str, NDArray[np.float32]], tasks: Sequence[str]) -> Scores:
    """Scores `[candidates, tasks]` from one array `[candidates]` per task. Raises `LoadError` where one is absent."""
    if absent := [task for task in tasks if task not in found]:
        raise LoadError(f"the answer lacks the outputs {', '.join(absent)}; it has {', '.join(found)}")
    return np.stack([found[task] for task in tasks], axis=1)


def _columns(history: History) -> dict[str, list[int]]:
    return {
        "items": history.items.tolist(),
        "actions": history.actions.tolist(),
        "timestamps": history.timestamps.tolist(),
    }
