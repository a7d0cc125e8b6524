"""What goes wrong beside the request: a store that fails, clients that go away."""

from __future__ import annotations

import socket
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from flame import errors
from flame.errors import FlameError
from tests.server.asking import Question, Reply, ask_grpc, ask_http
from tests.server.questions import GOOD, changed, check, slow
from tests.server.running import Server
from tests.server.tiny_server import AWAY, DEFECT

Ask = Callable[..., Reply]


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
