"""Inference requests over gRPC: raw and typed contents, and messages that contradict themselves."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.errors import FlameError, InvalidTensor, MalformedRequest, RequestError
from flame.server import messages
from flame.server.oip import InferRequest, InferResponse
from flame.server.proto import open_inference_pb2 as pb
from flame.server.proto.generate import generate

IDS = np.arange(6, dtype=np.int64).reshape(2, 3)


def message(*tensors: dict[str, Any], raw: list[bytes] | None = None, **fields: Any) -> Any:
    made = pb.ModelInferRequest(model_name="m", raw_input_contents=raw or [], **fields)
    for tensor in tensors:
        made.inputs.add(**({"name": "candidates", "datatype": "INT64", "shape": [2, 3]} | tensor))
    return made


def decode(made: Any) -> InferRequest:
    return messages.decode(pb.ModelInferRequest.FromString(made.SerializeToString()), 100.0, None)


def contents(**values: Any) -> dict[str, Any]:
    return {"contents": pb.InferTensorContents(**values)}


@pytest.mark.parametrize(
    "made",
    [message({}, raw=[IDS.tobytes()]), message(contents(int64_contents=IDS.ravel().tolist()))],
    ids=["raw", "typed"],
)
def test_values_come_raw_or_typed(made: Any) -> None:
    values = decode(made).inputs["candidates"]
    assert values.dtype == np.int64
    assert np.array_equal(values, IDS)


def test_typed_values_of_every_datatype() -> None:
    request = decode(
        message(
            {"name": "hour", "datatype": "INT32", "shape": [1, 2], **contents(int_contents=[1, -2])},
            {"name": "battery", "datatype": "FP32", "shape": [2], **contents(fp32_contents=[0.5, np.nan])},
        )
    )
    assert request.inputs["hour"].dtype == np.int32
    assert request.inputs["hour"].tolist() == [[1, -2]]
    assert np.isnan(request.inputs["battery"][1])


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (message({}, raw=[IDS.tobytes()[:-1]]), InvalidTensor, "47 bytes"),
        (message({}, raw=[IDS.tobytes(), b""]), MalformedRequest, "2 entries for 1 inputs"),
        (message({}, {"name": "x"}, raw=[IDS.tobytes()]), MalformedRequest, "1 entries for 2 inputs"),
        (message(contents(int64_contents=[1]), raw=[IDS.tobytes()]), InvalidTensor, "beside"),
        (message({}), InvalidTensor, "[0]"),
        (message(contents(int64_contents=[1] * 5)), InvalidTensor, "[5]"),
        (message(contents(int_contents=[1] * 6)), InvalidTensor, "int_contents"),
        (message({"datatype": "BYTES", **contents(bytes_contents=[b""] * 6)}), InvalidTensor, "'BYTES'"),
        (message({}, {}, raw=[IDS.tobytes()] * 2), InvalidTensor, "twice"),
        (message({"shape": [-2, -3]}, raw=[IDS.tobytes()]), InvalidTensor, "-2"),
        (
            message({"parameters": {"shared_memory_region": pb.InferParameter(string_param="r")}}),
            InvalidTensor,
            "shared memory",
        ),
        (message(parameters={"deadline_ms": pb.InferParameter(string_param="5")}), MalformedRequest, "deadline_ms"),
        (message(parameters={"timeout": pb.InferParameter(double_param=np.nan)}), MalformedRequest, "nan"),
    ],
)
def test_what_is_wrong_is_named(made: Any, error: type[FlameError], said: str) -> None:
    with pytest.raises(error) as caught:
        decode(made)
    assert said in str(caught.value)


def test_the_earliest_deadline_counts() -> None:
    made = message(parameters={"deadline_ms": pb.InferParameter(int64_param=500), "other": pb.InferParameter()})
    assert messages.decode(made, 100.0, None).deadline == 100.5
    assert messages.decode(made, 100.0, 100.25).deadline == 100.25
    assert messages.decode(message(), 100.0, None).deadline is None


@pytest.mark.parametrize(
    ("parameter", "priority"),
    [({"string_param": "batch"}, "batch"), ({"int64_param": 1}, "interactive"), ({"uint64_param": 2}, "batch")],
)
def test_a_priority_comes_as_word_or_number(parameter: dict[str, Any], priority: str) -> None:
    made = message(parameters={"priority": pb.InferParameter(**parameter)})
    assert messages.decode(made, 100.0, None).priority == priority
    assert messages.decode(message(), 100.0, None).priority == "interactive"


def test_a_response_has_raw_scores_and_parameters() -> None:
    scores = np.array([[0.25, 0.5]], np.float32)
    made = messages.encode(
        InferResponse("m", "1", "x", {"like": scores}, {"backend": "eager", "stale": 2, "truncated": True})
    )
    assert made.parameters["truncated"].WhichOneof("parameter_choice") == "bool_param"
    assert (made.model_name, made.model_version, made.id) == ("m", "1", "x")
    assert (made.parameters["backend"].string_param, made.parameters["stale"].int64_param) == ("eager", 2)
    assert (made.outputs[0].name, list(made.outputs[0].shape)) == ("like", [1, 2])
    assert made.raw_output_contents[0] == scores.tobytes()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_message_is_a_request_or_a_request_error(data: bytes) -> None:
    with contextlib.suppress(RequestError, DecodeError):
        messages.decode(pb.ModelInferRequest.FromString(data), 0.0, None)


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["candidates", "user_id"]),
                "datatype": st.sampled_from(["INT64", "INT32", "FP32", "BOOL"]),
                "shape": st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=3),
            },
            optional={
                "contents": st.builds(
                    pb.InferTensorContents,
                    int64_contents=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
                    fp32_contents=st.lists(st.floats(width=32), max_size=4),
                )
            },
        ),
        max_size=3,
    ),
    st.lists(st.binary(max_size=40), max_size=3),
)
def test_anything_like_a_request_is_one_or_a_request_error(tensors: list[dict[str, Any]], raw: list[bytes]) -> None:
    with contextlib.suppress(RequestError):
        decode(message(*tensors, raw=raw))


def test_the_committed_messages_are_what_the_definition_generates(tmp_path: Path) -> None:
    generate(tmp_path)
    folder = Path(pb.__file__).parent
    for name in ("open_inference_pb2.py", "open_inference_pb2.pyi"):
        assert (tmp_path / name).read_text() == (folder / name).read_text(), "run python -m flame.server.proto.generate"


@pytest.mark.parametrize("first", ["tritonclient.grpc", "flame.server.proto.open_inference_pb2"])
def test_the_stock_client_lives_in_the_same_process(first: str) -> None:
    code = f"""
import {first}
import tritonclient.grpc.service_pb2 as theirs
import flame.server.proto.open_inference_pb2 as ours
for name, message in ours.DESCRIPTOR.message_types_by_name.items():
    other = theirs.DESCRIPTOR.message_types_by_name.get(name)
    for field in message.fields if other else ():
        twin = other.fields_by_name[field.name]
        assert (twin.number, twin.type, twin.is_repeated) == (field.number, field.type, field.is_repeated), field.name
        print(name, field.name)
for method in ours.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
    twin = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[method.name]
    assert twin.input_type.full_name == method.input_type.full_name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ModelInferRequest raw_input_contents" in done.stdout
