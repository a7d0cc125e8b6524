"""Where the load goes, from the URL a person writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from flame.bench.load.client import Client
from flame.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Target:
    """A protocol and where it is spoken. `protocol` "http" is binary tensors, "json" is `/v1/rank`."""

    protocol: Literal["http", "json", "grpc"]
    host: str
    port: int

    def connect(self, connections: int) -> Client:
        """A client; must be called inside a running event loop."""
        if self.protocol == "grpc":
            from flame.bench.load.grpc_client import GrpcClient

            return GrpcClient(self.host, self.port)
        from flame.bench.load.http_client import HttpClient

        return HttpClient(self.host, self.port, json=self.protocol == "json", connections=connections)


def parse_target(url: str) -> Target:
    """`http://host:port` (binary tensors), `http://host:port/v1/rank` (JSON) or `grpc://host:port`.

    Raises `ConfigError`.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host and port and parts.scheme == "grpc" and parts.path in ("", "/"):
        return Target("grpc", host, port)
    if host and port and parts.scheme == "http" and parts.path in ("", "/"):
        return Target("http", host, port)
    if host and port and parts.scheme == "http" and parts.path == "/v1/rank":
        return Target("json", host, port)
    raise ConfigError(
        f"{url!r} is no address to load: write http://HOST:PORT (binary tensors), http://HOST:PORT/v1/rank (JSON) "
        "or grpc://HOST:PORT"
    )
