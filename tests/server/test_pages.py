"""What operators look at: the first page, health, metrics, and the standard gRPC services."""

from __future__ import annotations

import contextlib
import http.client
import json

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.server.asking import Question, ask_grpc, ask_http
from tests.server.questions import tensors
from tests.server.running import Server


def test_the_first_page_says_what_is_served_and_how_to_try_it(server: Server) -> None:
    status, body, headers = server.request("GET", "/")
    text = body.decode()
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    for said in ("tiny-climber", "compiled", "like", "23 candidates", f"http://{server.http}", server.grpc, "curl"):
        assert said in text
    assert text in server.log


def test_the_line_to_try_works(server: Server) -> None:
    text = server.request("GET", "/")[1].decode()
    body = text.split("-d '")[1].split("'")[0]
    status, answer, _ = server.request("POST", "/v1/rank", body.encode())
    assert status == 200
    assert len(json.loads(answer)["scores"]["like"]) == 3


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/tiny-climber/versions/1/ready"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health(server: Server, method: str, path: str) -> None:
    assert server.request(method, path)[:2] == (200, b"")


def test_requests_are_counted_by_protocol_and_outcome(server: Server) -> None:
    def count(protocol: str, outcome: str) -> float:
        return server.metric("flame_requests_total", outcome=outcome, protocol=protocol)

    kinds = [(protocol, outcome) for protocol in ("http", "grpc") for outcome in ("ok", "unknown_task")]
    before = [count(*kind) for kind in kinds]
    for ask in (ask_http, ask_grpc):
        ask(server, Question(tensors()))
        ask(server, Question(tensors(), outputs=("click",)))
    assert [count(*kind) for kind in kinds] == [number + 1 for number in before]


def test_the_repository_index_can_ask_for_ready_models_only(server: Server) -> None:
    status, body, _ = server.request("POST", "/v2/repository/index", b'{"ready": true}')
    assert (status, len(json.loads(body))) == (200, 1)
    assert server.request("POST", "/v2/repository/index", b"[1]")[0] == 400


def test_the_standard_health_service(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_tells_the_definition(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    assert services >= {"inference.GRPCInferenceService", "grpc.health.v1.Health"}
    assert "ModelInferRequest" in {message.name for message in file.message_type}


def test_a_connection_serves_many_requests_also_after_errors(server: Server) -> None:
    connection = http.client.HTTPConnection(server.http, timeout=60)
    with contextlib.closing(connection):
        connection.connect()
        local = connection.sock.getsockname()
        for body, wanted in ((b'{"user": 1, "candidates": [1]}', 200), (b"{", 400), (b"", 400)) * 3:
            connection.request("POST", "/v1/rank", body)
            response = connection.getresponse()
            response.read()
            assert response.status == wanted
            assert connection.sock.getsockname() == local
