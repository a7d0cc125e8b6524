"""More work than there is time for, over both protocols: who waits for whom, who leaves, and what is left out.

The launches of these servers take long, whatever the machine, and what takes little is far from it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest

from flame import errors
from flame.ranker import Ranker
from tests.server.asking import Question, Reply, ask_http, http_reply
from tests.server.questions import GOOD, TOLERANCE, check, difference, oracle_scores, tensors
from tests.server.running import Server

Ask = Callable[..., Reply]
Start = Callable[..., Server]

SLOW = {"engine.backend": "eager", "orchestrator.candidates": "8,23", "launch_s": 0.1}


@pytest.fixture(scope="module")
def truncating(start: Start) -> Server:
    """0.8 s for 8 candidates, 2.3 s for 23."""
    return start(**SLOW, **{"orchestrator.overload": "truncate", "orchestrator.executors": 2})


@pytest.fixture(scope="module")
def busy(start: Start) -> Server:
    """One executor; 2.3 s for every request."""
    return start(**{**SLOW, "orchestrator.candidates": "23"})


def cancelled(server: Server) -> float:
    return server.metric("flame_refused_total", stage="queue", reason="cancelled", priority="interactive")


def first(question: Question, candidates: int) -> Question:
    return Question(question.inputs | {"candidates": question.inputs["candidates"][:, :candidates]})


def test_a_truncated_answer_over_the_open_inference_protocol(truncating: Server, ask: Ask, oracle: Ranker) -> None:
    before = truncating.metric("flame_truncated_total")
    question = Question(tensors(candidates=23, seed=3), parameters={"deadline_ms": 1600})
    reply = ask(truncating, question)
    assert (reply.parameters["truncated"], reply.parameters["candidates_scored"]) == (True, 8)
    assert {scores.shape for scores in reply.outputs.values()} == {(1, 8)}
    assert difference(oracle_scores(oracle, first(question, 8)), reply) < TOLERANCE
    assert truncating.metric("flame_truncated_total") == before + 1


def test_an_answer_with_time_enough_is_whole(truncating: Server, ask: Ask) -> None:
    reply = ask(truncating, Question(tensors(candidates=23), parameters={"deadline_ms": 600_000}))
    assert reply.parameters["truncated"] is False
    assert reply.parameters["candidates_scored"] == 23


def test_users_of_one_request_are_truncated_to_one_number(truncating: Server, ask: Ask, oracle: Ranker) -> None:
    """The first is let in whole, the second with 8: a tensor has no room for both."""
    question = Question(tensors(users=2, candidates=23, seed=5), parameters={"deadline_ms": 2900})
    reply = ask(truncating, question)
    assert (reply.parameters["truncated"], reply.parameters["candidates_scored"]) == (True, 8)
    assert {scores.shape for scores in reply.outputs.values()} == {(2, 8)}
    assert difference(oracle_scores(oracle, first(question, 8)), reply) < TOLERANCE


def test_a_truncated_answer_in_plain_json(truncating: Server) -> None:
    body = {"user": 3, "candidates": list(range(1, 24)), "deadline_ms": 1600}
    status, answer, _ = truncating.request("POST", "/v1/rank", json.dumps(body).encode())
    content = json.loads(answer)
    assert (status, content["truncated"], content["candidates_scored"]) == (200, True, 8)
    assert content["candidates"] == list(range(1, 9))
    assert {len(scores) for scores in content["scores"].values()} == {8}


def test_a_deadline_that_not_even_the_smallest_launch_can_meet(truncating: Server, ask: Ask) -> None:
    reply = ask(truncating, Question(tensors(candidates=23), parameters={"deadline_ms": 600}))
    check(reply, errors.DeadlineExceeded, "expected in")


def test_a_client_who_goes_leaves_the_queue_at_once(busy: Server, ask: Ask) -> None:
    path, body, headers = GOOD.http()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    host, port = busy.http.split(":")
    before = cancelled(busy)
    with ThreadPoolExecutor(1) as pool, grpc.insecure_channel(busy.grpc) as channel:
        running = pool.submit(ask, busy, GOOD)
        busy.eventually(lambda: busy.metric("flame_in_flight") == 1)
        if ask is ask_http:
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(head.encode() + b"\r\n" + body)
                busy.eventually(lambda: busy.metric("flame_in_flight") == 2)
        else:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            waiting = call.future(GOOD.grpc().SerializeToString())
            busy.eventually(lambda: busy.metric("flame_in_flight") == 2)
            waiting.cancel()
        busy.eventually(lambda: cancelled(busy) == before + 1 and busy.metric("flame_in_flight") < 2)
        assert not running.done(), "the place is free while the launch that it waited for still runs"
        assert running.result().status in (200, "OK")


def test_batch_requests_give_way(busy: Server, ask: Ask) -> None:
    """One runs; of two that wait, the interactive one is served first, though it came last."""
    done: list[str] = []

    def run(name: str, **parameters: str | int) -> None:
        assert ask(busy, replace(GOOD, parameters=parameters)).status in (200, "OK")
        done.append(name)

    with ThreadPoolExecutor(3) as pool:
        futures = []
        for number, (name, parameters) in enumerate(
            [("running", {}), ("batch", {"priority": "batch"}), ("interactive", {"priority": "interactive"})]
        ):
            futures.append(pool.submit(run, name, **parameters))
            busy.eventually(lambda number=number: busy.metric("flame_in_flight") == number + 1)
        for future in futures:
            future.result()
    assert done == ["running", "interactive", "batch"]


def test_a_priority_in_a_header(server: Server) -> None:
    assert ask_http(server, GOOD, {"X-Request-Priority": "Batch"}).status == 200
    check(ask_http(server, GOOD, {"X-Request-Priority": "now"}), errors.InvalidPriority, "'now'")
    path = ("POST", "/v1/rank", json.dumps({"user": 1, "candidates": [1]}).encode())
    check(http_reply(*server.request(*path, {"X-Request-Priority": "now"})), errors.InvalidPriority, "'now'")
    assert server.request(*path, {"X-Request-Priority": "batch"})[0] == 200


def test_refusals_are_counted_by_priority(server: Server) -> None:
    labels = {"stage": "admission", "reason": "deadline_exceeded", "priority": "batch"}
    before = server.metric("flame_refused_total", **labels)
    late = {"X-Request-Deadline-Ms": "0", "X-Request-Priority": "batch"}
    check(ask_http(server, GOOD, late), errors.DeadlineExceeded, "passed")
    assert server.metric("flame_refused_total", **labels) == before + 1
