"""The stock Open Inference Protocol client, unmodified, over HTTP and gRPC."""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flame.ranker import Ranker
from tests.server.asking import DATATYPES, Question
from tests.server.questions import TOLERANCE, oracle_scores, tensors
from tests.server.running import Server

MODEL = "tiny-climber"


@pytest.fixture(params=["http", "grpc"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    """`tritonclient.http` or `tritonclient.grpc`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing the client and gevent warns of is theirs
        return importlib.import_module(f"tritonclient.{request.param}")


@pytest.fixture
def client(library: ModuleType, server: Server) -> Iterator[Any]:
    url = server.http if library.__name__.endswith("http") else server.grpc
    with library.InferenceServerClient(url) as made:
        yield made


def inputs(library: ModuleType, given: dict[str, NDArray[Any]], **how: Any) -> list[Any]:
    made = []
    for name, values in given.items():
        made.append(library.InferInput(name, list(values.shape), DATATYPES[values.dtype.name]))
        made[-1].set_data_from_numpy(values, **how)
    return made


def as_dict(answer: Any) -> Any:
    """Answers of the gRPC client are messages."""
    if isinstance(answer, dict | list):
        return answer
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True)


def close_to_oracle(result: Any, oracle: Ranker, given: dict[str, NDArray[Any]]) -> bool:
    expected = oracle_scores(oracle, Question(given))
    return all(np.abs(result.as_numpy(task) - scores).max() < TOLERANCE for task, scores in expected.items())


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")


def test_metadata(client: Any) -> None:
    server = as_dict(client.get_server_metadata())
    assert server["name"] == "flame"
    assert "binary_tensor_data" in server["extensions"]
    model = as_dict(client.get_model_metadata(MODEL))
    assert (model["name"], model["versions"]) == (MODEL, ["1"])
    shapes = {
        tensor["name"]: (tensor["datatype"], [int(size) for size in tensor["shape"]]) for tensor in model["inputs"]
    }
    assert shapes["candidates"] == ("INT64", [-1, -1])
    assert shapes["battery"] == ("FP32", [-1, 1])
    assert [tensor["name"] for tensor in model["outputs"]] == ["complete_play", "like", "share"]


def test_configuration(client: Any) -> None:
    content = as_dict(client.get_model_config(MODEL, "1"))
    config = content.get("config", content)
    optional = {tensor["name"]: tensor.get("optional", False) for tensor in config["input"]}
    assert optional["user_id"] is False
    assert optional["history_items"] is True
    assert config["max_batch_size"] == 64
    assert config["backend"] == "compiled"
    assert config["parameters"]["max_candidates"] == {"string_value": "23"}
    assert config["instance_group"][0]["kind"] == "KIND_CPU"


def test_repository_index(client: Any) -> None:
    content = as_dict(client.get_model_repository_index())
    models = content["models"] if isinstance(content, dict) else content
    assert [(model["name"], model["version"], model["state"]) for model in models] == [(MODEL, "1", "READY")]


def test_infer(client: Any, library: ModuleType, oracle: Ranker) -> None:
    given = tensors(users=2, seed=21, history=True)
    result = client.infer(MODEL, inputs(library, given), model_version="1", request_id="mine")
    assert close_to_oracle(result, oracle, given)
    response = as_dict(result.get_response())
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine", MODEL, "1")


def test_infer_with_requested_outputs_and_a_deadline(client: Any, library: ModuleType, oracle: Ranker) -> None:
    given = tensors(seed=22)
    wanted = [library.InferRequestedOutput("share")]
    result = client.infer(
        MODEL, inputs(library, given), outputs=wanted, timeout=60_000_000, parameters={"deadline_ms": 60_000}
    )
    assert result.as_numpy("like") is None
    assert np.abs(result.as_numpy("share") - oracle_scores(oracle, Question(given))["share"]).max() < TOLERANCE


def test_infer_with_a_priority_as_the_client_knows_it(client: Any, library: ModuleType, server: Server) -> None:
    labels = {"stage": "admission", "reason": "deadline_exceeded", "priority": "batch"}
    before = server.metric("flame_refused_total", **labels)
    client.infer(MODEL, inputs(library, tensors()), priority=2)
    with pytest.raises(Exception, match="deadline"):
        client.infer(MODEL, inputs(library, tensors()), priority=2, parameters={"deadline_ms": -1})
    assert server.metric("flame_refused_total", **labels) == before + 1


def test_an_error_reaches_the_client(client: Any, library: ModuleType) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="no model 'climbr'") as caught:
        client.infer("climbr", inputs(library, tensors()))
    assert caught.value.status() in ("404", "StatusCode.NOT_FOUND")


def test_statistics_count_what_was_asked(client: Any, library: ModuleType) -> None:
    def count() -> tuple[int, int, int]:
        stats = as_dict(client.get_inference_statistics(MODEL))["model_stats"][0]
        success = stats["inference_stats"]["success"]
        return int(stats["inference_count"]), int(success["ns"]), int(stats["execution_count"])

    client.infer(MODEL, inputs(library, tensors()))
    before = count()
    client.infer(MODEL, inputs(library, tensors(users=2)))
    after = count()
    assert after[0] == before[0] + 2
    assert after[1] > before[1]
    assert after[2] > before[2]
    assert int(as_dict(client.get_inference_statistics())["model_stats"][0]["last_inference"]) > 1.7e12


def test_async_infer_over_http(server: Server, oracle: Ranker) -> None:
    library = pytest.importorskip("tritonclient.http")
    given = [tensors(seed=seed) for seed in range(6)]
    with library.InferenceServerClient(server.http, concurrency=3) as client:
        pending = [client.async_infer(MODEL, inputs(library, own)) for own in given]
        assert all(close_to_oracle(one.get_result(), oracle, own) for one, own in zip(pending, given, strict=True))


def test_async_infer_over_grpc(server: Server, oracle: Ranker) -> None:
    library = pytest.importorskip("tritonclient.grpc")
    given = [tensors(seed=seed) for seed in range(6)]
    results: dict[int, Any] = {}
    done = threading.Semaphore(0)

    def answered(seed: int, result: Any, error: Any) -> None:
        results[seed] = error or result
        done.release()

    with library.InferenceServerClient(server.grpc) as client:
        for seed, own in enumerate(given):
            client.async_infer(
                MODEL, inputs(library, own), lambda result, error, seed=seed: answered(seed, result, error)
            )
        assert all(done.acquire(timeout=60) for _ in given)
    assert all(close_to_oracle(results[seed], oracle, own) for seed, own in enumerate(given))


def test_stream_infer_over_grpc_goes_on_after_an_error(server: Server, oracle: Ranker) -> None:
    library = pytest.importorskip("tritonclient.grpc")
    good, bad = tensors(seed=31), tensors(seed=31, candidates=24)
    answers: list[Any] = []
    done = threading.Semaphore(0)

    def answered(result: Any, error: Any) -> None:
        answers.append(error or result)
        done.release()

    with library.InferenceServerClient(server.grpc) as client:
        client.start_stream(answered)
        for own in (good, bad, good):
            client.async_stream_infer(MODEL, inputs(library, own))
        assert all(done.acquire(timeout=60) for _ in range(3))
        client.stop_stream()
    assert close_to_oracle(answers[0], oracle, good)
    assert "24" in str(answers[1])
    assert close_to_oracle(answers[2], oracle, good)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_http_inputs_and_outputs_as_json_or_bytes(
    server: Server, oracle: Ranker, binary: bool, compression: str | None
) -> None:
    library = pytest.importorskip("tritonclient.http")
    given = tensors(users=2, seed=41, history=True)
    wanted = [library.InferRequestedOutput(task, binary_data=binary) for task in ("complete_play", "like", "share")]
    with library.InferenceServerClient(server.http) as client:
        result = client.infer(
            MODEL,
            inputs(library, given, binary_data=binary),
            outputs=wanted,
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
    assert close_to_oracle(result, oracle, given)
    assert ("data" in result.get_output("like")) is not binary
