"""Open Inference Protocol over HTTP: JSON, and the binary tensor extension in both directions.

A body is a JSON object, followed, where header `Inference-Header-Content-Length` gives the length of that object, by
the bytes of all tensors that have the parameter `binary_data_size`, in their order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from flame.errors import InvalidTensor, MalformedRequest
from flame.records import Priority
from flame.server import deadline, priority, tensors
from flame.server.oip import InferRequest, InferResponse, Values
from flame.server.tensors import quoted


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Body(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}
    id: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the outputs are to be written: `binary` where an output does not say otherwise, `overrides` where it does."""

    binary: bool
    overrides: dict[str, bool]

    def is_binary(self, output: str) -> bool:
        return self.overrides.get(output, self.binary)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A response body. `json_bytes` is the length of its JSON where binary tensors follow, else None."""

    body: bytes
    json_bytes: int | None


_body_decoder = msgspec.json.Decoder(_Body)
_REFUSED_OUTPUT_PARAMETERS = {"classification", "shared_memory_region"}


def decode(
    body: bytes,
    json_bytes: int | None,
    model: str,
    version: str,
    arrival: float,
    header_deadline: float | None = None,
    header_priority: Priority | None = None,
) -> tuple[InferRequest, Wanted]:
    """The request in `body`, and how its outputs are to be written.

    `json_bytes` is the value of header `Inference-Header-Content-Length`, `arrival` the time the request came in,
    `header_deadline` and `header_priority` what came in headers.
    Raises `MalformedRequest`, `InvalidPriority` and `InvalidTensor`. Tensors may be read-only views of `body`.
    """
    text, binary = _split(body, json_bytes)
    try:
        content = _body_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the body is not an inference request in JSON: {error}") from error
    request = InferRequest(
        model=model,
        version=version,
        inputs=tensors.named(_values(content.inputs, binary)),
        outputs=tuple(output.name for output in content.outputs),
        deadline=deadline.earliest(header_deadline, deadline.from_parameters(content.parameters, arrival)),
        request_id=content.id,
        priority=priority.from_parameters(content.parameters, header_priority),
    )
    return request, _wanted(content)


def encode(response: InferResponse, wanted: Wanted) -> Encoded:
    """`response` as a body: JSON numbers or bytes for each output, as `wanted` says."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, scores in response.outputs.items():
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": scores.shape}
        if wanted.is_binary(name):
            binary.append(scores.tobytes())
            output["parameters"] = {"binary_data_size": scores.nbytes}
        else:
            output["data"] = scores.ravel().tolist()
        outputs.append(output)
    text = msgspec.json.encode(_head(response) | {"outputs": outputs})
    return Encoded(b"".join([text, *binary]), len(text)) if binary else Encoded(text, None)


def _head(response: InferResponse) -> dict[str, Any]:
    head: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.request_id:
        head["id"] = response.request_id
    return head | {"parameters": response.parameters}


def _split(body: bytes, json_bytes: int | None) -> tuple[memoryview, memoryview]:
    view = memoryview(body)
    if json_bytes is None:
        return view, view[len(view) :]
    if not 0 < json_bytes <= len(view):
        raise MalformedRequest(
            f"Inference-Header-Content-Length is {json_bytes}, the body has {len(view)} bytes; "
            "it must be the length of the JSON object at the start of the body"
        )
    return view[:json_bytes], view[json_bytes:]


def _values(inputs: Sequence[_Input], binary: memoryview) -> Iterator[tuple[str, Values]]:
    position = 0
    for tensor in inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            yield tensor.name, _from_json(tensor)
        else:
            _check_size(tensor, size, len(binary) - position)
            data = binary[position : position + size]
            yield tensor.name, tensors.from_bytes(tensor.name, tensor.datatype, tensor.shape, data)
            position += size
    if position != len(binary):
        raise MalformedRequest(f"{len(binary) - position} bytes follow the last tensor; no `binary_data_size` has them")


def _check_size(tensor: _Input, size: Any, left: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidTensor(f"tensor {quoted(tensor.name)}: binary_data_size is {quoted(str(size))}, not a byte count")
    if size > left:
        raise InvalidTensor(
            f"tensor {quoted(tensor.name)} is truncated: binary_data_size is {size}, the body has {left} bytes left"
        )
    if tensor.data is not msgspec.UNSET:
        raise InvalidTensor(f"tensor {quoted(tensor.name)} has both `data` and binary_data_size; send one")


def _from_json(tensor: _Input) -> Values:
    if "shared_memory_region" in tensor.parameters:
        raise InvalidTensor(f"tensor {quoted(tensor.name)}: shared memory is not served; send the data in the body")
    if isinstance(tensor.data, msgspec.UnsetType):
        raise InvalidTensor(f"tensor {quoted(tensor.name)} has no data; send `data` or bytes with binary_data_size")
    tensors.checked(tensor.name, tensor.datatype, tensor.shape)
    return tensors.from_numbers(tensor.name, tensor.datatype, tensor.shape, _numbers(tensor, tensor.data))


def _numbers(tensor: _Input, data: msgspec.Raw) -> list[Any]:
    """The numbers of `data`: flat in almost every request, or nested as deep as `shape` has dimensions."""
    try:
        return _decoder(tensor.datatype, 1).decode(data)
    except msgspec.DecodeError as flat:
        try:
            return _decoder(tensor.datatype, len(tensor.shape)).decode(data)
        except msgspec.DecodeError:
            raise InvalidTensor(f"tensor {quoted(tensor.name)}: data is not {tensor.datatype}: {flat}") from None


@functools.lru_cache(maxsize=64)
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[list[Any]]:
    kind: Any = float if datatype == "FP32" else int
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _wanted(content: _Body) -> Wanted:
    overrides = {}
    for output in content.outputs:
        if refused := output.parameters.keys() & _REFUSED_OUTPUT_PARAMETERS:
            raise InvalidTensor(
                f"output {quoted(output.name)}: {', '.join(sorted(refused))} is not served; leave it out"
            )
        if "binary_data" in output.parameters:
            overrides[output.name] = output.parameters["binary_data"] is True
    return Wanted(content.parameters.get("binary_data_output") is True, overrides)
