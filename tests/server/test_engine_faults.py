"""A server whose engine fails: who was in the launch is told, the server goes on, or says that it cannot."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flame import errors
from flame.ranker import Ranker
from tests.server.asking import Question, Reply, ask_grpc, ask_http
from tests.server.questions import GOOD, TOLERANCE, check, difference, oracle_scores, tensors
from tests.server.running import Server
from tests.server.tiny_server import BREAKS, FAILS, HANGS

Ask = Callable[..., Reply]
Start = Callable[..., Server]

EAGER = {"engine.backend": "eager"}


def asked(candidates: int) -> Question:
    return Question(tensors(candidates=candidates))


def ready(server: Server) -> tuple[int, str]:
    """What HTTP and gRPC say to who asks whether to send requests."""
    with grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    status, _, _ = server.request("GET", "/v2/health/ready")
    return status, health_pb2.HealthCheckResponse.ServingStatus.Name(health.status)


@pytest.fixture(scope="module")
def faulty(start: Start) -> Server:
    return start(faulty=True, **EAGER, **{"orchestrator.launch_limit_ms": 300})


@pytest.mark.parametrize(("candidates", "said"), [(FAILS, "RuntimeError"), (HANGS, "longer than 300 ms")])
def test_a_launch_that_fails_or_hangs(faulty: Server, ask: Ask, oracle: Ranker, candidates: int, said: str) -> None:
    check(ask(faulty, asked(candidates)), errors.ExecutionError, said)
    assert difference(oracle_scores(oracle, GOOD), ask(faulty, GOOD)) < TOLERANCE
    assert ready(faulty) == (200, "SERVING")
    faulty.eventually(lambda: faulty.metric("flame_executors", device="cpu", state="running") == 1)
    assert faulty.metric("flame_in_flight") == 0


def test_an_engine_that_is_broken_for_good(start: Start) -> None:
    server = start(faulty=True, **EAGER)
    check(ask_http(server, asked(BREAKS)), errors.ExecutionError, "RuntimeError")
    server.eventually(lambda: ready(server) == (503, "NOT_SERVING"))
    for ask in (ask_http, ask_grpc):
        check(ask(server, GOOD), errors.EngineFailed, "failed")
    assert server.metric("flame_executors", device="cpu", state="out") == 1
    assert server.request("GET", "/v2/health/live")[0] == 200
    index = json.loads(server.request("POST", "/v2/repository/index")[1])
    assert index[0]["state"] == "UNAVAILABLE"
    assert "failed" in index[0]["reason"]
    assert "restart the process" in server.log
    server.signal(signal.SIGTERM)
    assert server.ended()["cut"] == 0


def test_a_hang_does_not_hold_up_the_end(start: Start) -> None:
    server = start(faulty=True, **EAGER, **{"orchestrator.launch_limit_ms": 600_000, "server.drain_s": 0.3})
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(ask_http, server, asked(HANGS))
        server.eventually(lambda: server.metric("flame_in_flight") == 1)
        server.signal(signal.SIGTERM)
        check(reply.result(), errors.ShuttingDown, "shut down")
    assert server.ended()["cut"] == 1
