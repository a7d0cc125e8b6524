"""The gRPC server: the inference calls, and the standard health and reflection services."""

from __future__ import annotations

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from flame.config import ServerConfig
from flame.errors import ConfigError
from flame.server.calls import SERVICE, Calls
from flame.server.proto import open_inference_pb2

_SERVING = health_pb2.HealthCheckResponse.SERVING


class GrpcServer:
    """Listens from the start, serves from `start` on. Made and used in the loop's thread."""

    def __init__(self, calls: Calls, config: ServerConfig) -> None:
        """Binds the port. Raises `ConfigError` where it cannot be had."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", config.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a port that is taken must be an error, not shared with whoever has it
            ]
        )
        self._server.add_generic_rpc_handlers((calls.handler(),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, _reflected())
        self.port = _bound(self._server, config.host, config.grpc_port)

    async def start(self) -> None:
        """Begins to answer."""
        await self._server.start()
        for service in ("", SERVICE):
            await self._health.set(service, _SERVING)

    async def not_serving(self) -> None:
        """Lets the health service say that no more requests should be sent."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Takes no new calls; those that came in have `grace` seconds to end before they are cancelled."""
        await self._server.stop(grace)


def _reflected() -> descriptor_pool.DescriptorPool:
    """The definitions that clients may ask for; ours are not in the process-wide pool."""
    pool = descriptor_pool.DescriptorPool()
    for module in (open_inference_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool


def _bound(server: grpc.aio.Server, host: str, port: int) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound: int = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"server.grpc_port: cannot listen on {address}; is the port taken?") from error
    return bound
