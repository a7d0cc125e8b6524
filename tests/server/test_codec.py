"""Inference requests over HTTP: JSON, the binary extension, and bytes that are neither."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flame.errors import FlameError, InvalidPriority, InvalidTensor, MalformedRequest, RequestError
from flame.server import codec
from flame.server.oip import InferRequest, InferResponse

IDS = np.arange(6, dtype=np.int64).reshape(2, 3)


def tensor(name: str = "candidates", **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [2, 3], "datatype": "INT64"} | changes


def as_bytes(name: str = "candidates", size: int = 48, **changes: Any) -> dict[str, Any]:
    return tensor(name, parameters={"binary_data_size": size}, **changes)


def decode(content: Any, binary: bytes = b"", json_bytes: int | None = None) -> InferRequest:
    text = content if isinstance(content, bytes) else msgspec.json.encode(content)
    length = json_bytes if json_bytes is not None else len(text) if binary else None
    return codec.decode(text + binary, length, "m", "1", arrival=100.0)[0]


@pytest.mark.parametrize("data", [IDS.ravel().tolist(), IDS.tolist()], ids=["flat", "nested"])
def test_json_numbers(data: list[Any]) -> None:
    request = decode({"inputs": [tensor(data=data)], "id": "x", "outputs": [{"name": "like"}]})
    assert np.array_equal(request.inputs["candidates"], IDS)
    assert (request.model, request.version, request.request_id, request.outputs) == ("m", "1", "x", ("like",))


@pytest.mark.parametrize("pad", range(8))
def test_binary_tensors_in_their_order_at_any_place(pad: int) -> None:
    content = {"id": "x" * pad, "inputs": [as_bytes("one"), as_bytes("two", 24, datatype="FP32")]}
    floats = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    request = decode(content, IDS.tobytes() + floats.tobytes())
    assert np.array_equal(request.inputs["one"], IDS)
    assert np.array_equal(request.inputs["two"], floats)


def test_json_and_binary_tensors_mix() -> None:
    request = decode({"inputs": [tensor("one", data=IDS.tolist()), as_bytes("two")]}, IDS.tobytes())
    assert np.array_equal(request.inputs["one"], request.inputs["two"])


def test_the_earliest_deadline_counts() -> None:
    content = {"inputs": [], "parameters": {"deadline_ms": 500, "timeout": 250_000}}
    assert decode(content).deadline == 100.25
    assert codec.decode(msgspec.json.encode(content), None, "m", "", 100.0, 100.1)[0].deadline == 100.1


def test_a_priority_of_the_body_wins_over_that_of_the_header() -> None:
    def priority(header: Any, **parameters: Any) -> str:
        body = msgspec.json.encode({"inputs": [], "parameters": parameters})
        return codec.decode(body, None, "m", "", 100.0, None, header)[0].priority

    assert priority(None) == "interactive"
    assert priority("batch") == "batch"
    assert priority("batch", priority="interactive") == "interactive"
    assert priority(None, priority=2) == "batch"


@pytest.mark.parametrize("priority", ["", "Batch", "urgent", 3, -1, 1.0, True, [1], {}])
def test_a_priority_is_one_of_two(priority: Any) -> None:
    with pytest.raises(InvalidPriority, match="'interactive' or 'batch'"):
        decode({"inputs": [], "parameters": {"priority": priority}})


@pytest.mark.parametrize("deadline", ["50", True, [50]])
def test_a_deadline_is_a_number(deadline: Any) -> None:
    with pytest.raises(MalformedRequest, match="deadline_ms"):
        decode({"inputs": [], "parameters": {"deadline_ms": deadline}})


@pytest.mark.parametrize(
    ("content", "binary", "json_bytes", "error", "said"),
    [
        (b"", b"", None, MalformedRequest, "truncated"),
        (b"{", b"", None, MalformedRequest, "truncated"),
        (b"[]", b"", None, MalformedRequest, "array"),
        (b"\xff\xfe", b"", None, MalformedRequest, "malformed"),
        (b'{"id": "\xff", "inputs": []}', b"", None, MalformedRequest, "0xff"),
        (b'{"inputs": ' + b"[" * 100_000, b"", None, MalformedRequest, "JSON"),
        ({}, b"", None, MalformedRequest, "inputs"),
        ({"inputs": [tensor(shape="2")]}, b"", None, MalformedRequest, "inputs[0].shape"),
        ({"inputs": [tensor(shape=[2, 1.5])]}, b"", None, MalformedRequest, "inputs[0].shape"),
        ({"inputs": []}, b"abc", None, MalformedRequest, "3 bytes follow"),
        ({"inputs": []}, b"abc", 0, MalformedRequest, "is 0"),
        ({"inputs": []}, b"", 10**6, MalformedRequest, "1000000"),
        ({"inputs": [as_bytes()]}, b"", None, InvalidTensor, "0 bytes left"),
        ({"inputs": [as_bytes()]}, IDS.tobytes()[:-1], None, InvalidTensor, "47 bytes left"),
        ({"inputs": [as_bytes(size=40)]}, IDS.tobytes()[:40], None, InvalidTensor, "40 bytes"),
        ({"inputs": [as_bytes()]}, IDS.tobytes() + b"!", None, MalformedRequest, "1 bytes follow"),
        ({"inputs": [as_bytes(size=-1)]}, b"!", None, InvalidTensor, "'-1'"),
        ({"inputs": [as_bytes(size=True)]}, b"!", None, InvalidTensor, "'True'"),  # type: ignore[arg-type]
        ({"inputs": [as_bytes(data=[1])]}, IDS.tobytes(), None, InvalidTensor, "both"),
        ({"inputs": [tensor()]}, b"", None, InvalidTensor, "no data"),
        ({"inputs": [tensor(data=[1, 2])]}, b"", None, InvalidTensor, "[2]"),
        ({"inputs": [tensor(data=[[1, 2, 3], [4, 5]])]}, b"", None, InvalidTensor, "candidates"),
        ({"inputs": [tensor(data=[0, 0, 0, 0, 0, 0.5])]}, b"", None, InvalidTensor, "INT64"),
        ({"inputs": [tensor(data=[[0, 0, 0], [0, 0, 0.5]])]}, b"", None, InvalidTensor, "INT64"),
        ({"inputs": [tensor(data=["0"] * 6)]}, b"", None, InvalidTensor, "INT64"),
        ({"inputs": [tensor(data=None)]}, b"", None, InvalidTensor, "INT64"),
        ({"inputs": [tensor(data=[2**63] * 6)]}, b"", None, InvalidTensor, "INT64"),
        ({"inputs": [tensor(data=[], datatype="INT16")]}, b"", None, InvalidTensor, "'INT16'"),
        ({"inputs": [tensor(data=[], shape=[2**50, 2**50])]}, b"", None, InvalidTensor, str(2**50)),
        ({"inputs": [tensor(data=IDS.tolist())] * 2}, b"", None, InvalidTensor, "twice"),
        ({"inputs": [tensor(parameters={"shared_memory_region": "r"})]}, b"", None, InvalidTensor, "shared memory"),
        (
            {"inputs": [], "outputs": [{"name": "like", "parameters": {"classification": 3}}]},
            b"",
            None,
            InvalidTensor,
            "classification",
        ),
    ],
)
def test_what_is_wrong_is_named(
    content: Any, binary: bytes, json_bytes: int | None, error: type[FlameError], said: str
) -> None:
    with pytest.raises(error) as caught:
        decode(content, binary, json_bytes)
    assert said in str(caught.value)


RESPONSE = InferResponse(
    "m",
    "1",
    "x",
    {name: np.full((1, 2), value, np.float32) for name, value in (("like", 0.25), ("share", 0.5))},
    {"stale": 1},
)


def wanted(content: dict[str, Any]) -> codec.Wanted:
    return codec.decode(msgspec.json.encode({"inputs": []} | content), None, "m", "", 0.0)[1]


def test_outputs_are_json_numbers_unless_asked_for_as_bytes() -> None:
    encoded = codec.encode(RESPONSE, wanted({}))
    content = msgspec.json.decode(encoded.body)
    assert encoded.json_bytes is None
    assert (content["model_name"], content["id"], content["parameters"]) == ("m", "x", {"stale": 1})
    assert content["outputs"][1] == {"name": "share", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.5]}


def test_an_output_overrides_what_is_asked_for_all() -> None:
    choice = wanted(
        {
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "like", "parameters": {"binary_data": False}}, {"name": "share"}],
        }
    )
    encoded = codec.encode(RESPONSE, choice)
    assert encoded.json_bytes is not None
    like, share = msgspec.json.decode(encoded.body[: encoded.json_bytes])["outputs"]
    assert like["data"] == [0.25, 0.25]
    assert share["parameters"] == {"binary_data_size": 8}
    assert encoded.body[encoded.json_bytes :] == np.full(2, 0.5, "<f4").tobytes()


def json_like() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    names = st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size", "INT64", "x"])
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4))


def survives(body: bytes, json_bytes: int | None) -> None:
    with contextlib.suppress(RequestError):
        codec.decode(body, json_bytes, "m", "", 0.0)


@settings(deadline=None)
@given(st.binary(max_size=200), st.none() | st.integers(-5, 210))
@example(b'{"inputs":[{"name":"a","shape":[1],"datatype":"INT64","data":[1e999]}]}', None)
@example(b'{"inputs":[{"name":"a","shape":[1],"datatype":"INT64","data":[' + b"9" * 5000 + b"]}]}", None)
@example(b'{"inputs":[{"name":"a","shape":[' + b"9" * 5000 + b'],"datatype":"INT64","data":[1]}]}', None)
@example(b'{"inputs":[{"name":"a","shape":[1],"datatype":"INT64","data":' + b"[" * 5000 + b"]" * 5000 + b"}]}", None)
@example(b'{"inputs":[{"name":"a","shape":[1],"datatype":"INT64","data":["\xff"]}]}', None)
@example(b'{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","data":[1e39]}]}', None)
@example(b'{"inputs":[],"parameters":{"deadline_ms":' + b"9" * 400 + b"}}", None)
def test_any_bytes_are_a_request_or_a_request_error(body: bytes, json_bytes: int | None) -> None:
    survives(body, json_bytes)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(["candidates", "user_id", "x"]),
                        "shape": st.lists(st.integers(0, 4) | st.integers(), max_size=4),
                        "datatype": st.sampled_from(["INT64", "INT32", "FP32", "BYTES"]),
                    },
                    optional={
                        "data": json_like(),
                        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(0, 40) | json_like()}),
                    },
                )
                | json_like(),
                max_size=3,
            )
        },
        optional={"parameters": json_like(), "outputs": json_like(), "id": json_like()},
    ),
    st.binary(max_size=48),
    st.booleans(),
)
def test_anything_like_a_request_is_one_or_a_request_error(content: Any, binary: bytes, split: bool) -> None:
    text = msgspec.json.encode(content)
    survives(text + binary, len(text) if split else None)
