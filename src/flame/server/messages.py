"""Open Inference Protocol over gRPC: protobuf messages to requests and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flame.errors import InvalidTensor, MalformedRequest
from flame.server import deadline, priority, tensors
from flame.server.oip import InferRequest, InferResponse, Values
from flame.server.proto import open_inference_pb2 as pb
from flame.server.tensors import quoted

_CONTENTS = {"INT64": "int64_contents", "INT32": "int_contents", "FP32": "fp32_contents"}


def decode(message: pb.ModelInferRequest, arrival: float, call_deadline: float | None) -> InferRequest:
    """The request in `message`, which came in at `arrival`; `call_deadline` is that of the gRPC call, if it has one.

    Raises `MalformedRequest`, `InvalidPriority` and `InvalidTensor`.
    """
    parameters = _parameters(message.parameters)
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        inputs=tensors.named(_values(message)),
        outputs=tuple(output.name for output in message.outputs),
        deadline=deadline.earliest(call_deadline, deadline.from_parameters(parameters, arrival)),
        request_id=message.id,
        priority=priority.from_parameters(parameters),
    )


def encode(response: InferResponse) -> pb.ModelInferResponse:
    """`response` with raw contents, as every client of the protocol reads them."""
    message = pb.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.request_id)
    for name, value in response.parameters.items():
        if isinstance(value, str):
            message.parameters[name].string_param = value
        elif isinstance(value, bool):
            message.parameters[name].bool_param = value
        else:
            message.parameters[name].int64_param = value
    for name, scores in response.outputs.items():
        message.outputs.add(name=name, datatype="FP32", shape=scores.shape)
        message.raw_output_contents.append(scores.tobytes())
    return message


def _values(message: pb.ModelInferRequest) -> Iterator[tuple[str, Values]]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise MalformedRequest(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs; it has one for each, or none"
        )
    for index, tensor in enumerate(message.inputs):
        if "shared_memory_region" in tensor.parameters:
            raise InvalidTensor(f"tensor {quoted(tensor.name)}: shared memory is not served; send the data")
        yield tensor.name, _from_raw(tensor, raw[index]) if raw else _from_contents(tensor)


def _from_raw(tensor: pb.ModelInferRequest.InferInputTensor, data: bytes) -> Values:
    if tensor.HasField("contents"):
        raise InvalidTensor(f"tensor {quoted(tensor.name)} has `contents` beside raw_input_contents; send one")
    return tensors.from_bytes(tensor.name, tensor.datatype, tensor.shape, data)


def _from_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> Values:
    tensors.checked(tensor.name, tensor.datatype, tensor.shape)
    own = _CONTENTS[tensor.datatype]
    for field, values in tensor.contents.ListFields():
        if field.name != own and len(values):
            raise InvalidTensor(
                f"tensor {quoted(tensor.name)} has values in {field.name}; {tensor.datatype} belongs in {own}"
            )
    return tensors.from_numbers(tensor.name, tensor.datatype, tensor.shape, getattr(tensor.contents, own))


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    found = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, choice) if choice else None
    return found
