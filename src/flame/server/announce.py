"""What `flame serve` prints and `GET /` answers: where it listens, what it serves, how to try it."""

from __future__ import annotations

import flame
from flame.config import ServerConfig
from flame.server.service import Service

_MIB = 2**20


def announcement(service: Service, config: ServerConfig, http_port: int, grpc_port: int) -> str:
    """A few lines of plain text for a person."""
    spec, limits = service.spec, service.spec.input
    host = f"[{config.host}]" if ":" in config.host else config.host
    version = flame.__version__ + (" (compiled)" if flame.compiled() else "")
    candidates = ", ".join(str(item) for item in range(1, min(3, limits.max_candidates) + 1))
    return f"""\
FLAME {version} serves {spec.name}, version {spec.version} ({spec.architecture}, backend {service.engine})
  tasks   {", ".join(task.name for task in spec.tasks)}
  limits  {limits.max_candidates} candidates, {limits.max_history} history events, {limits.scenarios} scenarios, \
{config.max_body_bytes / _MIB:g} MiB a request, {service.max_users} requests in flight
  HTTP    http://{host}:{http_port}  Open Inference Protocol v2, POST /v1/rank, GET /metrics, GET /v1/trace
  gRPC    {host}:{grpc_port}  Open Inference Protocol v2, health, reflection
Try it:
  curl -s http://{host}:{http_port}/v1/rank -d '{{"user": 1, "candidates": [{candidates}]}}'
"""
