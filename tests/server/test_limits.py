"""Too much, too many, too late: refused over both protocols, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from flame import errors
from tests.server.asking import Question, Reply, ask_grpc, ask_http, http_reply, send_grpc
from tests.server.questions import GOOD, check, slow, tensors
from tests.server.running import Server

Ask = Callable[..., Reply]


def test_a_body_over_the_limit(small_server: Server) -> None:
    large = b" " * 5000
    answer = small_server.request("POST", "/v1/rank", large)
    check(http_reply(*answer), errors.BodyTooLarge, "4096")
    assert answer[2]["Connection"] == "close"
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


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET / HTTP/1.1\r\n", b"x-many: of them\r\n" * 500),
        (b"GET / HTTP/1.1\r\nx-long: ", b"v" * 8000),
        (b"GET /", b"v" * 8000),
        (b"POST /v1/rank HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"x-trailer: of many\r\n" * 500),
    ],
    ids=["headers", "header", "path", "trailers"],
)
def test_headers_without_end(small_server: Server, head: bytes, piece: bytes) -> None:
    """Neither many headers nor a long one are kept for ever; a megabyte is more than anybody needs."""
    host, port = small_server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        sent = connection.send(head)
        with contextlib.suppress(ConnectionError):  # an answer may be lost: the client does not stop to read it
            while sent < 32_000_000:
                sent += connection.send(piece)
    assert sent < 16_000_000, "the server took it all"
    assert ask_http(small_server, GOOD).status == 200


def test_a_small_body_that_unpacks_over_the_limit(small_server: Server) -> None:
    bomb = zlib.compress(b" " * 10_000_000, 9)[:4000]
    check(
        http_reply(*small_server.request("POST", "/v1/rank", bomb, {"Content-Encoding": "deflate"})),
        errors.BodyTooLarge,
        "4096",
    )
    check(
        http_reply(*small_server.request("POST", "/v1/rank", b"{}", {"Content-Encoding": "gzip"})),
        errors.MalformedRequest,
        "gzip",
    )
    check(
        http_reply(*small_server.request("POST", "/v1/rank", b"{}", {"Content-Encoding": "br"})),
        errors.MalformedRequest,
        "'br'",
    )


def test_a_full_server_refuses_at_once_and_recovers(small_server: Server, ask: Ask) -> None:
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(ask, small_server, slow(2000)) for _ in range(2)]
        small_server.eventually(lambda: small_server.metric("flame_in_flight") == 2)
        check(ask(small_server, GOOD), errors.QueueFull, "2 requests")
        path, body, headers = GOOD.http()
        status, _, answer = small_server.request("POST", path, body, headers)
        assert (status, answer["Retry-After"]) == (429, "1")
        assert {future.result().status for future in busy} <= {200, "OK"}
    assert ask(small_server, GOOD).status in (200, "OK")


def test_users_of_one_request_are_let_in_together_or_not_at_all(small_server: Server, ask: Ask) -> None:
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(ask, small_server, slow(2000))
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
    check(http_reply(*server.request(*path, {"X-Request-Deadline-Ms": header})), errors.DeadlineExceeded, "deadline")


def test_a_header_that_is_no_deadline(server: Server) -> None:
    check(ask_http(server, GOOD, {"X-Request-Deadline-Ms": "soon"}), errors.MalformedRequest, "'soon'")


def test_the_deadline_of_a_grpc_call_ends_the_work(server: Server) -> None:
    def ended() -> float:
        kinds = ("cancelled", "deadline_exceeded")
        return sum(server.metric("flame_requests_total", outcome=kind, protocol="grpc") for kind in kinds)

    before = ended()
    assert ask_grpc(server, slow(1500), timeout=0.2).status == "DEADLINE_EXCEEDED"
    server.eventually(lambda: ended() == before + 1)
