"""A server's end: what was asked before it is answered, within a limit, and nothing stays behind."""

from __future__ import annotations

import queue
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import pytest

from flame.config import ServerConfig
from flame.errors import ConfigError
from flame.server.application import Application
from flame.server.http import HttpServer
from tests.server.asking import Question, Reply, ask_grpc, ask_http
from tests.server.questions import slow, tensors
from tests.server.running import Server

EAGER = {"engine.backend": "eager"}
START = Callable[..., Server]


def busy_with(server: Server, pool: ThreadPoolExecutor, question: Question) -> list[Future[Reply]]:
    """One request over each protocol, both in the ranker."""
    futures = [pool.submit(ask, server, question) for ask in (ask_http, ask_grpc)]
    server.eventually(lambda: server.metric("flame_in_flight") == 2)
    return futures


def test_requests_in_flight_are_answered_and_new_ones_are_not_taken(start: START) -> None:
    server = start(**EAGER)
    with ThreadPoolExecutor(2) as pool:
        futures = busy_with(server, pool, slow(2000))
        server.signal(signal.SIGTERM)
        server.eventually(lambda: "Shutting down: 2 requests" in server.log)
        refused = [ask_grpc(server, Question(tensors())).status]
        assert {future.result().status for future in futures} == {200, "OK"}
    assert refused == ["UNAVAILABLE"]
    assert server.ended() == {"cut": 0, "threads": ["MainThread"], "frozen": 0}
    assert "every request was answered" in server.log
    with pytest.raises(ConnectionError):
        ask_http(server, Question(tensors()))


def test_what_is_not_done_in_time_is_cut_and_counted(start: START) -> None:
    server = start(**EAGER, **{"server.drain_s": 0.3})
    with ThreadPoolExecutor(2) as pool:
        futures = busy_with(server, pool, slow(2000))
        server.signal(signal.SIGINT)
        replies = [future.result() for future in futures]
    assert {reply.status for reply in replies} == {503, "UNAVAILABLE"}
    assert {reply.kind for reply in replies} == {"shutting_down"}
    assert server.ended() == {"cut": 2, "threads": ["MainThread"], "frozen": 0}
    assert "cut 2 requests" in server.log


def test_a_second_signal_does_not_wait(start: START) -> None:
    server = start(**EAGER, **{"server.drain_s": 60})
    with ThreadPoolExecutor(2) as pool:
        futures = busy_with(server, pool, slow(2000))
        server.signal(signal.SIGTERM)
        server.eventually(lambda: "Shutting down" in server.log)
        server.signal(signal.SIGTERM)
        assert {future.result().kind for future in futures} == {"shutting_down"}
    assert server.ended()["cut"] == 2


def test_a_full_garbage_collection_has_little_to_look_at(server: Server) -> None:
    """What the libraries brought is set aside before the first request; looking through it takes 0.2 s."""
    assert server.frozen > 50_000


def test_connections_that_wait_do_not_hold_up_the_end(start: START) -> None:
    server = start(**EAGER, **{"server.drain_s": 1000})
    host, port = server.http.split(":")
    sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with (
        socket.create_connection((host, int(port))) as idle,
        socket.create_connection((host, int(port))) as half,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(1000).startswith(b"HTTP/1.1 200")
        half.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter(sent.get, None))
        sent.put(Question(tensors()).grpc().SerializeToString())
        assert next(stream)
        server.signal(signal.SIGTERM)
        assert server.ended()["cut"] == 0
        sent.put(None)  # type: ignore[arg-type]


def test_a_port_that_is_taken_ends_the_start(start: START) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=f"ConfigError: server.grpc_port.*127.0.0.1:{port}"):
            start(**EAGER, **{"server.grpc_port": port})


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"http_port.*127.0.0.1, port {port}"):
            HttpServer(Application(None, None, 1), ServerConfig(http_port=port))  # type: ignore[arg-type]
