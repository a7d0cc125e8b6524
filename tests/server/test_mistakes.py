"""Every mistake a client can make, over both protocols: its own error, its status, and a server that goes on."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from flame import errors
from flame.server.proto import open_inference_pb2 as pb
from tests.server.asking import Question, Reply, http_reply, send_grpc
from tests.server.questions import GOOD, changed, check, tensors
from tests.server.running import Server

Ask = Callable[..., Reply]


def history(events: int, action: int = 1, step: int = 1) -> dict[str, Any]:
    times = np.arange(events)[None] * step + 1000
    return {
        "history_items": np.ones((1, events), np.int64),
        "history_actions": np.full((1, events), action),
        "history_timestamps": times,
    }


ids = GOOD.inputs["candidates"]

MISTAKES = {
    "unknown model": (replace(GOOD, model="climbr"), errors.UnknownModel, "'climbr'"),
    "unknown version": (replace(GOOD, version="99"), errors.UnknownModel, "'99'"),
    "unknown task": (replace(GOOD, outputs=("like", "click")), errors.UnknownTask, "'click'"),
    "no candidates": (changed(candidates=ids[:, :0]), errors.InvalidCandidates, "at least one"),
    "too many candidates": (changed(candidates=np.ones((1, 24), np.int64)), errors.TooManyCandidates, "24"),
    "history over the limit": (changed(**history(38)), errors.HistoryTooLong, "38"),
    "unknown action": (changed(**history(3, action=5)), errors.InvalidHistory, "5"),
    "time out of order": (changed(**history(3, step=-1)), errors.InvalidHistory, "99"),
    "unknown scenario": (changed(scenario=np.array([[3]])), errors.InvalidScenario, "3"),
    "context feature is not a number": (
        changed(battery=np.array([[np.nan]], np.float32)), errors.InvalidFeature, "battery"
    ),
    "context feature is infinite": (
        changed(battery=np.array([[np.inf]], np.float32)), errors.InvalidFeature, "battery"
    ),
    "context feature beyond its vocabulary": (changed(hour=np.array([[25]], np.int32)), errors.InvalidFeature, "25"),
    "wrong dtype": (changed(candidates=ids.astype(np.int32)), errors.InvalidTensor, "INT32"),
    "unknown dtype": (changed(candidates=ids.astype(np.float64)), errors.InvalidTensor, "FP64"),
    "wrong shape": (changed(candidates=ids[0]), errors.InvalidTensor, "[7]"),
    "missing tensor": (changed(candidates=None), errors.InvalidTensor, "'candidates'"),
    "unknown tensor": (changed(candidate=ids), errors.InvalidTensor, "'candidate'"),
    "half a history": (changed(history_items=ids), errors.InvalidTensor, "history_actions"),
    "more users than fit": (
        Question({"user_id": np.ones((65, 1), np.int64), "candidates": np.ones((65, 1), np.int64)}),
        errors.InvalidTensor,
        "65",
    ),
    "expired deadline": (replace(GOOD, parameters={"deadline_ms": -20}), errors.DeadlineExceeded, "deadline"),
    "deadline of zero": (replace(GOOD, parameters={"deadline_ms": 0.0}), errors.DeadlineExceeded, "deadline"),
    "deadline that is no number": (
        replace(GOOD, parameters={"deadline_ms": "soon"}), errors.MalformedRequest, "'soon'"
    ),
    "priority that does not exist": (
        replace(GOOD, parameters={"priority": "urgent"}), errors.InvalidPriority, "'urgent'"
    ),
    "priority beyond the numbers": (replace(GOOD, parameters={"priority": 3}), errors.InvalidPriority, "'3'"),
    "priority that is no whole number": (replace(GOOD, parameters={"priority": 1.0}), errors.InvalidPriority, "'1.0'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("still_serves")
def test_a_mistake_has_its_own_error_and_names_the_value(server: Server, ask: Ask, mistake: str) -> None:
    question, error, said = MISTAKES[mistake]
    check(ask(server, question), error, said)


def test_one_wrong_user_fails_the_request_and_is_named(server: Server, ask: Ask) -> None:
    both = tensors(users=3)
    both["scenario"][1, 0] = 77
    reply = ask(server, Question(both))
    check(reply, errors.InvalidScenario, "77")
    assert f"user_id[1] ({both['user_id'][1, 0]})" in reply.message


@pytest.mark.usefixtures("still_serves")
def test_bytes_that_are_no_request(server: Server) -> None:
    path, body, headers = GOOD.http()
    for bad in (b"", b"{", b"\xff" * 50, body[:20], b"[1, 2]"):
        check(http_reply(*server.request("POST", path, bad)), errors.MalformedRequest, "JSON")
        check(http_reply(*server.request("POST", "/v1/rank", bad)), errors.MalformedRequest, "JSON")
    for bad in (b"\xff" * 50, GOOD.grpc().SerializeToString()[:-3]):
        check(send_grpc(server, bad), errors.MalformedRequest, f"{len(bad)} bytes")
    reply = http_reply(*server.request("POST", path, body, headers | {"Inference-Header-Content-Length": "many"}))
    check(reply, errors.MalformedRequest, "'many'")


@pytest.mark.usefixtures("still_serves")
def test_truncated_and_trailing_tensor_bytes(server: Server) -> None:
    path, body, headers = GOOD.http()
    check(http_reply(*server.request("POST", path, body[:-1], headers)), errors.InvalidTensor, "truncated")
    check(http_reply(*server.request("POST", path, body + b"123", headers)), errors.MalformedRequest, "3 bytes")
    message = GOOD.grpc()
    message.raw_input_contents[1] = message.raw_input_contents[1][:-1]
    check(send_grpc(server, message.SerializeToString()), errors.InvalidTensor, "55 bytes")
    message = GOOD.grpc()
    message.raw_input_contents.append(b"")
    check(send_grpc(server, message.SerializeToString()), errors.MalformedRequest, "6 entries for 5 inputs")


def test_a_tensor_given_twice(server: Server) -> None:
    path, body, headers = GOOD.http()
    length = int(headers["Inference-Header-Content-Length"])
    content = json.loads(body[:length])
    content["inputs"].append(content["inputs"][0])
    text = json.dumps(content).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    user = GOOD.inputs["user_id"].tobytes()
    check(
        http_reply(*server.request("POST", path, text + body[length:] + user, headers)), errors.InvalidTensor, "twice"
    )
    message = GOOD.grpc()
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(user)
    check(send_grpc(server, message.SerializeToString()), errors.InvalidTensor, "'user_id' is given twice")


@pytest.mark.usefixtures("still_serves")
def test_bytes_that_are_no_http_and_no_http2(server: Server) -> None:
    for address in (server.http, server.grpc):
        host, port = address.split(":")
        for bad in (b"\x00" * 100, b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00" * 50):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(bad)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while connection.recv(4096):
                        pass


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v3"), ("POST", "/v2"), ("GET", "/v1/rank"), ("DELETE", "/"), ("GET", "/v2/models/a/b/c")],
)
def test_a_call_that_does_not_exist(server: Server, method: str, path: str) -> None:
    check(http_reply(*server.request(method, path)), errors.UnknownRoute, f"{method} '{path}'")


def test_a_grpc_call_that_does_not_exist(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"")
    assert caught.value.code().name == errors.UnknownRoute.grpc_code


@pytest.mark.parametrize("call", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_an_unknown_model_in_calls_that_only_look_up(server: Server, call: str) -> None:
    request = getattr(pb, f"{call}Request")(name="climbr")
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/inference.GRPCInferenceService/{call}")(request.SerializeToString())
    assert (caught.value.code().name, "'climbr'" in caught.value.details()) == ("NOT_FOUND", True)
    end = {"ModelReady": "/ready", "ModelMetadata": "", "ModelConfig": "/config", "ModelStatistics": "/stats"}[call]
    check(http_reply(*server.request("GET", f"/v2/models/climbr{end}")), errors.UnknownModel, "'climbr'")
