"""Every mistake a client can make, over both protocols: its own error, its status, and a server that goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from flame import errors
from flame.errors import FlameError
from flame.server.proto import open_inference_pb2 as pb
from tests.server.asking import Question, Reply, ask_grpc, ask_http, http_reply, send_grpc
from tests.server.questions import slow, tensors
from tests.server.running import Server
from tests.server.tiny_server import AWAY, DEFECT

Ask = Callable[..., Reply]

GOOD = Question(tensors())


def changed(**inputs: Any) -> Question:
    """The good request with some inputs replaced, or taken out where the value is None."""
    given = {name: values for name, values in (GOOD.inputs | inputs).items() if values is not None}
    return Question(given)


def history(events: int, action: int = 1, step: int = 1) -> dict[str, Any]:
    times = np.arange(events)[None] * step + 1000
    return {
        "history_items": np.ones((1, events), np.int64),
        "history_actions": np.full((1, events), action),
        "history_timestamps": times,
    }


def check(reply: Reply, error: type[FlameError], said: str) -> None:
    assert reply.kind == error.kind, reply
    assert reply.status in (error.http_status, error.grpc_code)
    assert said in reply.message


@pytest.fixture
def still_serves(server: Server) -> Iterator[None]:
    """The same server answers a good request over both protocols afterwards."""
    yield
    assert ask_http(server, GOOD).status == 200
    assert ask_grpc(server, GOOD).status == "OK"


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


def test_a_body_over_the_limit(small_server: Server) -> None:
    large = b" " * 5000
    status, body, headers = small_server.request("POST", "/v1/rank", large)
    check(Reply(status, **_error(body)), errors.BodyTooLarge, "4096")
    assert headers["Connection"] == "close"
    reply = send_grpc(small_server, large)
    assert reply.status == errors.BodyTooLarge.grpc_code
    assert "4096" in reply.message
    assert ask_http(small_server, GOOD).status == 200
    assert ask_grpc(small_server, GOOD).status == "OK"


def test_a_body_over_the_limit_is_not_read(small_server: Server) -> None:
    """Not one byte of the body is sent, and the answer comes all the same."""
    host, port = small_server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_over_the_limit(small_server: Server) -> None:
    host, port = small_server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall((b"400\r\n" + b" " * 0x400 + b"\r\n") * 5)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_small_body_that_unpacks_over_the_limit(small_server: Server) -> None:
    bomb = zlib.compress(b" " * 10_000_000, 9)[:4000]
    status, body, _ = small_server.request("POST", "/v1/rank", bomb, {"Content-Encoding": "deflate"})
    check(Reply(status, **_error(body)), errors.BodyTooLarge, "4096")
    status, body, _ = small_server.request("POST", "/v1/rank", b"{}", {"Content-Encoding": "gzip"})
    check(Reply(status, **_error(body)), errors.MalformedRequest, "gzip")
    status, body, _ = small_server.request("POST", "/v1/rank", b"{}", {"Content-Encoding": "br"})
    check(Reply(status, **_error(body)), errors.MalformedRequest, "'br'")


def test_a_full_server_refuses_at_once_and_recovers(small_server: Server, ask: Ask) -> None:
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(ask, small_server, slow(1500)) for _ in range(2)]
        small_server.eventually(lambda: small_server.metric("flame_in_flight") == 2)
        check(ask(small_server, GOOD), errors.QueueFull, "2 requests")
        path, body, headers = GOOD.http()
        status, _, answer = small_server.request("POST", path, body, headers)
        assert (status, answer["Retry-After"]) == (429, "1")
        assert {future.result().status for future in busy} <= {200, "OK"}
    assert ask(small_server, GOOD).status in (200, "OK")


def test_users_of_one_request_are_let_in_together_or_not_at_all(small_server: Server, ask: Ask) -> None:
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(ask, small_server, slow(1000))
        small_server.eventually(lambda: small_server.metric("flame_in_flight") == 1)
        reply = ask(small_server, Question(tensors(users=2)))
        check(reply, errors.QueueFull, "user_id[1]")
        assert busy.result().status in (200, "OK")
    small_server.eventually(lambda: small_server.metric("flame_in_flight") == 0)
    assert ask(small_server, Question(tensors(users=2))).status in (200, "OK")


@pytest.mark.parametrize("header", ["0", "-3.5"])
def test_a_deadline_in_a_header(server: Server, header: str) -> None:
    check(ask_http(server, GOOD, {"X-Request-Deadline-Ms": header}), errors.DeadlineExceeded, "deadline")
    path = ("POST", "/v1/rank", json.dumps({"user": 1, "candidates": [1]}).encode())
    status, body, _ = server.request(*path, {"X-Request-Deadline-Ms": header})
    check(Reply(status, **_error(body)), errors.DeadlineExceeded, "deadline")


def test_a_header_that_is_no_deadline(server: Server) -> None:
    check(ask_http(server, GOOD, {"X-Request-Deadline-Ms": "soon"}), errors.MalformedRequest, "'soon'")


def test_the_deadline_of_a_grpc_call_ends_the_work(server: Server) -> None:
    def ended() -> float:
        kinds = ("cancelled", "deadline_exceeded")
        return sum(server.metric("flame_requests_total", outcome=kind, protocol="grpc") for kind in kinds)

    before = ended()
    assert ask_grpc(server, slow(1200), timeout=0.2).status == "DEADLINE_EXCEEDED"
    server.eventually(lambda: ended() == before + 1)


@pytest.mark.usefixtures("still_serves")
def test_a_store_that_cannot_be_read(server: Server, ask: Ask) -> None:
    check(ask(server, of_user(AWAY)), errors.StoreUnavailable, "does not answer")


@pytest.mark.usefixtures("still_serves")
def test_a_defect_is_logged_in_full_and_answered_with_a_bare_sentence(server: Server, ask: Ask) -> None:
    reply = ask(server, of_user(DEFECT))
    check(reply, FlameError, "internal error")
    assert "secret" not in reply.message
    server.eventually(lambda: "KeyError: 'a secret of the store'" in server.log)


def of_user(user: int) -> Question:
    return changed(user_id=np.array([[user]]))


def test_an_http_client_that_goes_away_cancels_its_request(server: Server) -> None:
    server.eventually(lambda: server.metric("flame_in_flight") == 0)
    before = server.metric("flame_requests_total", outcome="cancelled", protocol="http")
    path, body, headers = slow(700).http()
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port))) as connection:
        lines = f"POST {path} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n"
        connection.sendall(lines.encode() + body)
        server.eventually(lambda: server.metric("flame_in_flight") == 1)
    server.eventually(lambda: server.metric("flame_requests_total", outcome="cancelled", protocol="http") == before + 1)
    server.eventually(lambda: server.metric("flame_in_flight") == 0)
    assert ask_http(server, GOOD).status == 200


def test_a_grpc_client_that_goes_away_cancels_its_request(server: Server) -> None:
    server.eventually(lambda: server.metric("flame_in_flight") == 0)
    before = server.metric("flame_requests_total", outcome="cancelled", protocol="grpc")
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        future = call.future(slow(700).grpc().SerializeToString())
        server.eventually(lambda: server.metric("flame_in_flight") == 1)
        future.cancel()
    server.eventually(lambda: server.metric("flame_requests_total", outcome="cancelled", protocol="grpc") == before + 1)
    server.eventually(lambda: server.metric("flame_in_flight") == 0)
    assert ask_grpc(server, GOOD).status == "OK"


def test_a_client_that_goes_away_while_it_sends(server: Server) -> None:
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
    assert ask_http(server, GOOD).status == 200


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
    status, body, _ = server.request(method, path)
    check(Reply(status, **_error(body)), errors.UnknownRoute, f"{method} '{path}'")


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
    status, body, _ = server.request("GET", f"/v2/models/climbr{end}")
    check(Reply(status, **_error(body)), errors.UnknownModel, "'climbr'")


def _error(body: bytes) -> dict[str, str]:
    content = json.loads(body)
    return {"kind": content["kind"], "message": content["error"]}
