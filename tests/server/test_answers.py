"""Right answers over both protocols: compared with the oracle, alone and among many others at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from flame.ranker import Ranker
from tests.server.asking import Question, Reply, ask_grpc, ask_http
from tests.server.questions import TOLERANCE, difference, oracle_scores, tensors
from tests.server.running import Server

Ask = Callable[..., Reply]


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize("history", [False, True], ids=["stored history", "own history"])
def test_scores_are_those_of_the_oracle(server: Server, ask: Ask, oracle: Ranker, users: int, history: bool) -> None:
    question = Question(tensors(users, candidates=11, seed=users, history=history), request_id="mine")
    reply = ask(server, question)
    assert difference(oracle_scores(oracle, question), reply) < TOLERANCE
    assert reply.request_id == "mine"
    assert reply.parameters["backend"] == "compiled"
    assert reply.parameters["unknown"] == 0


def test_tasks_are_those_asked_for_in_that_order(server: Server, ask: Ask, oracle: Ranker) -> None:
    question = Question(tensors(seed=4), outputs=("share", "complete_play"))
    reply = ask(server, question)
    assert list(reply.outputs) == ["share", "complete_play"]
    assert difference(oracle_scores(oracle, question), reply) < TOLERANCE


def test_a_candidate_that_comes_twice_is_scored_in_both_places(server: Server, ask: Ask) -> None:
    candidates = np.array([[5, 9, 5, 7, 9, 5]])
    scores = ask(server, Question(tensors() | {"candidates": candidates})).outputs["like"][0]
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)
    assert scores[0] == pytest.approx(scores[5], abs=1e-6)
    assert scores[1] == pytest.approx(scores[4], abs=1e-6)
    assert len({round(float(score), 5) for score in scores}) == 3


def test_unknown_ids_are_scored_and_counted(server: Server, ask: Ask, oracle: Ranker) -> None:
    candidates = np.array([[5, 999_999, 7, -3, 0]])
    question = Question({"user_id": np.array([[777]]), "candidates": candidates})
    reply = ask(server, question)
    assert (reply.parameters["unknown"], reply.parameters["unknown_users"]) == (3, 1)
    assert difference(oracle_scores(oracle, question), reply) < TOLERANCE


def test_the_largest_request_and_the_smallest(server: Server, ask: Ask, oracle: Ranker) -> None:
    for candidates in (1, 23):
        question = Question(tensors(candidates=candidates, seed=candidates, history=True))
        assert difference(oracle_scores(oracle, question), ask(server, question)) < TOLERANCE


def test_plain_json_has_the_same_scores(server: Server, oracle: Ranker) -> None:
    inputs = tensors(seed=9, history=True)
    columns = ("items", "actions", "timestamps")
    body = {
        "user": int(inputs["user_id"][0, 0]),
        "candidates": inputs["candidates"][0].tolist(),
        "history": {name: inputs[f"history_{name}"][0].tolist() for name in columns},
        "scenario": int(inputs["scenario"][0, 0]),
        "context": {"hour": int(inputs["hour"][0, 0]), "battery": float(inputs["battery"][0, 0])},
        "deadline_ms": 60_000,
        "request_id": "mine",
    }
    status, answer, _ = server.request("POST", "/v1/rank", json.dumps(body).encode())
    content = json.loads(answer)
    assert status == 200
    assert (content["model"], content["version"], content["request_id"]) == ("tiny-climber", "1", "mine")
    assert content["degraded"] is False
    assert content["times_ms"]["total"] >= content["times_ms"]["compute"] > 0
    for task, scores in oracle_scores(oracle, Question(inputs)).items():
        assert np.abs(scores[0] - content["scores"][task]).max() < TOLERANCE


def test_no_request_gets_the_scores_of_another(server: Server, oracle: Ranker) -> None:
    """Many at once over both protocols, all of one size, each with an answer that no other request has."""
    shapes = [(1 + seed % 3, 9) for seed in range(30)]
    questions = [Question(tensors(*shape, seed=100 + seed)) for seed, shape in enumerate(shapes)]
    expected = [oracle_scores(oracle, question) for question in questions]
    replies = [Reply("OK", outputs=scores) for scores in expected]
    for one, other in combinations(range(len(questions)), 2):
        assert difference(expected[one], replies[other]) > 20 * TOLERANCE, "answers too alike to be told apart"

    def run(seed: int) -> list[tuple[int, Reply]]:
        order = np.random.default_rng(seed).permutation(len(questions))
        ask = ask_grpc if seed % 2 else ask_http
        return [(index, ask(server, replace(questions[index], request_id=f"{seed}-{index}"))) for index in order]

    with ThreadPoolExecutor(8) as pool:
        for seed, answered in enumerate(pool.map(run, range(8))):
            for index, reply in answered:
                assert reply.status in (200, "OK"), reply
                assert reply.request_id == f"{seed}-{index}"
                assert difference(expected[index], reply) < TOLERANCE
