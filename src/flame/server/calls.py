"""The calls of `inference.GRPCInferenceService`: bytes in, message, service, message, bytes out.

Messages are parsed here and not by the gRPC library, so that bytes which are no message end in the same error as any
other mistake of a client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from flame.errors import MalformedRequest, RequestCancelled
from flame.server import describe, messages
from flame.server.failures import explain
from flame.server.proto import open_inference_pb2 as pb
from flame.server.service import Service

SERVICE: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
KIND_KEY = "flame-error-kind"
"""Trailing metadata of a failed call: the error's kind, as in JSON answers."""


class Calls:
    """The calls of one service over gRPC."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def handler(self) -> grpc.GenericRpcHandler:
        """All calls, to be added to a server."""
        calls = {
            "ServerLive": self._fixed(pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=True)),
            "ServerReady": self._fixed(
                pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=self._service.ready)
            ),
            "ServerMetadata": self._fixed(
                pb.ServerMetadataRequest,
                lambda _: json_format.ParseDict(describe.server(), pb.ServerMetadataResponse()),
            ),
            "ModelReady": self._fixed(pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": self._fixed(pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": self._fixed(pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": self._fixed(pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": self._fixed(pb.RepositoryIndexRequest, self._index),
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._model_infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._model_stream_infer),
        }
        return grpc.method_handlers_generic_handler(SERVICE, calls)

    def _model_ready(self, request: pb.ModelReadyRequest) -> Message:
        self._service.check_model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._service.ready)

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> Message:
        content = self._service.model_metadata(request.name, request.version)
        return json_format.ParseDict(content, pb.ModelMetadataResponse())

    def _model_config(self, request: pb.ModelConfigRequest) -> Message:
        content = self._service.model_configuration(request.name, request.version)
        return json_format.ParseDict({"config": content}, pb.ModelConfigResponse())

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> Message:
        content = self._service.statistics(request.name, request.version)
        return json_format.ParseDict(content, pb.ModelStatisticsResponse())

    def _index(self, request: pb.RepositoryIndexRequest) -> Message:
        content = {"models": self._service.index(only_ready=request.ready)}
        return json_format.ParseDict(content, pb.RepositoryIndexResponse())

    async def _model_infer(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            reply: bytes = (await self._infer(data, context)).SerializeToString()
            return reply
        except asyncio.CancelledError:
            self._count(RequestCancelled.kind)
            raise
        except Exception as error:
            await self._abort(context, error)

    async def _model_stream_infer(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        async for data in requests:
            try:
                reply = pb.ModelStreamInferResponse(infer_response=await self._infer(data, context))
            except Exception as error:
                failure = explain(error)
                self._count(failure.kind)
                reply = pb.ModelStreamInferResponse(error_message=failure.message)
            yield reply.SerializeToString()

    async def _infer(self, data: bytes, context: grpc.aio.ServicerContext) -> pb.ModelInferResponse:
        arrival = time.monotonic()
        left = context.time_remaining()
        call_deadline = None if left is None else arrival + left
        request = messages.decode(_parsed(pb.ModelInferRequest, data), arrival, call_deadline)
        reply = messages.encode(await self._service.infer(request))
        self._count("ok")
        return reply

    def _fixed(self, kind: type[Message], answer: Callable[[Any], Message]) -> grpc.RpcMethodHandler:
        """A call that only looks something up."""

        async def call(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            try:
                reply: bytes = answer(_parsed(kind, data)).SerializeToString()
                return reply
            except Exception as error:
                await self._abort(context, error)

        return grpc.unary_unary_rpc_method_handler(call)

    async def _abort(self, context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
        failure = explain(error)
        self._count(failure.kind)
        trailing = ((KIND_KEY, failure.kind),)
        await context.abort(grpc.StatusCode[failure.grpc_code], failure.message, trailing)
        raise AssertionError("abort raises")

    def _count(self, outcome: str) -> None:
        self._service.metrics.requests.labels("grpc", outcome).inc()


def _parsed(kind: type[Message], data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedRequest(f"{len(data)} bytes are not a message {kind.DESCRIPTOR.full_name}: {error}") from error
