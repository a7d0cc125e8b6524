"""One inference request, asked over either protocol."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from flame.server.proto import open_inference_pb2 as pb
from tests.server.running import Server

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Question:
    """An inference request that either protocol can carry."""

    inputs: Tensors
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, int | float | str] = field(default_factory=dict)
    model: str = "tiny-climber"
    version: str = ""
    request_id: str = ""

    def http(self) -> tuple[str, bytes, dict[str, str]]:
        """Path, body and headers."""
        inputs = [_described(name, values) for name, values in self.inputs.items()]
        content = {
            "id": self.request_id,
            "inputs": inputs,
            "outputs": [{"name": name} for name in self.outputs],
            "parameters": {"binary_data_output": True} | dict(self.parameters),
        }
        text = json.dumps(content).encode()
        body = b"".join([text, *(values.tobytes() for values in self.inputs.values())])
        version = f"/versions/{self.version}" if self.version else ""
        return f"/v2/models/{self.model}{version}/infer", body, {"Inference-Header-Content-Length": str(len(text))}

    def grpc(self) -> Any:
        """The message."""
        message = pb.ModelInferRequest(model_name=self.model, model_version=self.version, id=self.request_id)
        for name, values in self.inputs.items():
            message.inputs.add(name=name, datatype=DATATYPES[values.dtype.name], shape=values.shape)
            message.raw_input_contents.append(values.tobytes())
        for name in self.outputs:
            message.outputs.add(name=name)
        for name, value in self.parameters.items():
            kind = {int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
            setattr(message.parameters[name], kind, value)
        return message


@dataclass(frozen=True)
class Reply:
    """What came back: `status` is 200 or "OK", or what the protocol says of the error called `kind`."""

    status: int | str
    kind: str = ""
    message: str = ""
    request_id: str = ""
    outputs: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


def ask_http(server: Server, question: Question, headers: Mapping[str, str] | None = None) -> Reply:
    path, body, own = question.http()
    return http_reply(*server.request("POST", path, body, own | dict(headers or {})))


def http_reply(status: int, body: bytes, headers: http.client.HTTPMessage) -> Reply:
    if status != 200:
        content = json.loads(body)
        return Reply(status, content["kind"], content["error"])
    length = int(headers["Inference-Header-Content-Length"])
    content, rest = json.loads(body[:length]), body[length:]
    outputs = {}
    for output in content["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = np.frombuffer(rest[:size], "<f4").reshape(output["shape"])
        rest = rest[size:]
    assert not rest
    return Reply(200, request_id=content.get("id", ""), outputs=outputs, parameters=content["parameters"])


def ask_grpc(server: Server, question: Question, timeout: float | None = None) -> Reply:
    return send_grpc(server, question.grpc().SerializeToString(), timeout)


def send_grpc(server: Server, data: bytes, timeout: float | None = None) -> Reply:
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            message = pb.ModelInferResponse.FromString(call(data, timeout=timeout))
        except grpc.RpcError as error:
            kinds = dict(error.trailing_metadata() or ())
            return Reply(error.code().name, kinds.get("flame-error-kind", ""), error.details() or "")
    outputs = {
        output.name: np.frombuffer(raw, "<f4").reshape(output.shape)
        for output, raw in zip(message.outputs, message.raw_output_contents, strict=True)
    }
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in message.parameters.items()
    }
    return Reply("OK", request_id=message.id, outputs=outputs, parameters=parameters)


DATATYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "float64": "FP64", "int16": "INT16"}


def _described(name: str, values: NDArray[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": DATATYPES[values.dtype.name],
        "shape": values.shape,
        "parameters": {"binary_data_size": values.nbytes},
    }
