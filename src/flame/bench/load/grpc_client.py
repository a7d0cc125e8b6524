"""gRPC as a protocol of the load generator: `ModelInfer` of the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from flame.bench.load.client import OK, Durations, LoadError, ModelFacts, Reply, stages_of
from flame.bench.load.http_messages import by_task, tensors
from flame.records import RankRequest, Scores
from flame.server.proto import open_inference_pb2 as pb

_SERVICE = "/inference.GRPCInferenceService/"
_LARGEST_MESSAGE = 256 * 2**20
_KIND = "flame-error-kind"
"""Trailing metadata that names the kind of error."""


class GrpcClient:
    """A `Client` over one HTTP/2 connection; messages are serialised before the measurement."""

    def __init__(self, host: str, port: int) -> None:
        self._target = f"{host}:{port}"
        self._channel = grpc.aio.insecure_channel(
            self._target, options=[("grpc.max_receive_message_length", _LARGEST_MESSAGE)]
        )
        self._infer = self._channel.unary_unary(f"{_SERVICE}ModelInfer")

    async def facts(self, model: str | None) -> ModelFacts:
        index = await self._call("RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
        models = {entry.name: entry.version for entry in index.models}
        if model is None and len(models) == 1:
            model = next(iter(models))
        if model is None or model not in models:
            raise LoadError(f"the server has the models {', '.join(models) or 'none'}; name one of them with --model")
        found = await self._call("ModelConfig", pb.ModelConfigRequest(name=model), pb.ModelConfigResponse)
        return ModelFacts.of(MessageToDict(found.config, preserving_proto_field_name=True), models[model])

    async def durations(self, model: str) -> Durations:
        request = pb.ModelStatisticsRequest(name=model)
        found = await self._call("ModelStatistics", request, pb.ModelStatisticsResponse)
        stages = found.model_stats[0].inference_stats
        return {
            field.name: (getattr(stages, field.name).count, getattr(stages, field.name).ns)
            for field in stages.DESCRIPTOR.fields
        }

    def message(self, request: RankRequest, facts: ModelFacts, deadline_ms: float | None) -> bytes:
        content = pb.ModelInferRequest(model_name=facts.name)
        for name, values in tensors(request):
            content.inputs.add(name=name, datatype="INT64", shape=values.shape)
            content.raw_input_contents.append(values.tobytes())
        if deadline_ms is not None:
            content.parameters["deadline_ms"].double_param = deadline_ms
        serialised: bytes = content.SerializeToString()
        return serialised

    async def send(self, message: bytes) -> Reply:
        try:
            answer = pb.ModelInferResponse.FromString(await self._infer(message))
        except grpc.aio.AioRpcError as error:
            return Reply(_kind(error))
        except DecodeError:
            return Reply("bad_answer")
        return Reply(OK, stages_of({name: value.int64_param for name, value in answer.parameters.items()}))

    async def scores(self, message: bytes, facts: ModelFacts) -> Scores:
        try:
            answer = pb.ModelInferResponse.FromString(await self._infer(message))
        except grpc.aio.AioRpcError as error:
            raise LoadError(f"{self._target} answered {error.code().name}: {error.details()}") from error
        found = {
            output.name: np.frombuffer(data, "<f4")
            for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }
        return by_task(found, facts.tasks)

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, name: str, request: Any, response: Any) -> Any:
        """A call outside the measurement. Raises `LoadError`."""
        call = self._channel.unary_unary(
            _SERVICE + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            return await call(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            raise LoadError(
                f"{self._target} answered {error.code().name} to {name}: {error.details()}; is the server running?"
            ) from error


def _kind(error: grpc.aio.AioRpcError) -> str:
    """The kind the server names, else the status in lower case."""
    for key, value in error.trailing_metadata() or ():
        if key == _KIND:
            return value if isinstance(value, str) else value.decode()
    name: str = error.code().name
    return "cannot_connect" if _never_connected(error) else name.lower()


def _never_connected(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE and "failed to connect" in (error.details() or "").lower()
