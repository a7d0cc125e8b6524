"""Which HTTP path and method means what: Open Inference Protocol v2, `/v1/rank`, and the pages for operators.

GET   /                                          what is served here, in words
GET   /metrics                                   Prometheus text
GET   /v1/trace[?seconds=N]                      what was done lately, as a Chrome trace
POST  /v1/rank                                   one user in plain JSON
GET   /v2, /v2/health/live, /v2/health/ready
POST  /v2/repository/index
GET   /v2/models/stats
GET   /v2/models/{model}[/versions/{version}]    and .../ready, .../config, .../stats
POST  /v2/models/{model}[/versions/{version}]/infer
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from flame.errors import MalformedRequest, UnknownRoute
from flame.records import Priority
from flame.server import codec, deadline, describe, priority, rank_json
from flame.server.asgi import BINARY, JSON, TEXT, Header, Request, Response, json_response
from flame.server.service import Service
from flame.server.tensors import quoted

_METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_TRACE_NAME: Header = (b"content-disposition", b'attachment; filename="flame-trace.json"')
_JSON_BYTES = b"inference-header-content-length"
_DEADLINE = deadline.HEADER.lower().encode()
_PRIORITY = priority.HEADER.lower().encode()


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a request. `scores` marks the calls that do work: they have a body and can be cancelled."""

    answer: Callable[[Request], Awaitable[Response]]
    scores: bool = False


class Routes:
    """The calls of one service over HTTP."""

    def __init__(self, service: Service, text: Callable[[], str]) -> None:
        self._service = service
        self._text = text

    def find(self, method: str, path: str) -> Route:
        """The route for a request. Raises `UnknownRoute`."""
        parts = path.strip("/").split("/")
        route = self._get(parts) if method in ("GET", "HEAD") else self._post(parts) if method == "POST" else None
        if route is None:
            raise UnknownRoute(f"there is no call {method} {quoted(path)}; GET / lists what is served")
        return route

    def _get(self, parts: list[str]) -> Route | None:
        service = self._service
        match parts:
            case [""]:
                return _fixed(lambda: Response(self._text().encode(), TEXT))
            case ["metrics"]:
                return _fixed(lambda: Response(service.metrics.render(), _METRICS_TYPE))
            case ["v1", "trace"]:
                return Route(self._trace)
            case ["v2"]:
                return _json(describe.server)
            case ["v2", "health", "live"]:
                return _fixed(Response)
            case ["v2", "health", "ready"]:
                return _fixed(self._ready)
            case ["v2", "models", "stats"]:
                return _json(service.statistics)
            case ["v2", "models", model, "versions", version, *call] if len(call) < 2:
                return self._model(model, version, call)
            case ["v2", "models", model, *call] if len(call) < 2:
                return self._model(model, "", call)
        return None

    def _post(self, parts: list[str]) -> Route | None:
        match parts:
            case ["v1", "rank"]:
                return Route(self._rank, scores=True)
            case ["v2", "repository", "index"]:
                return Route(self._index)
            case ["v2", "models", model, "infer"]:
                return Route(lambda request: self._infer(request, model, ""), scores=True)
            case ["v2", "models", model, "versions", version, "infer"]:
                return Route(lambda request: self._infer(request, model, version), scores=True)
        return None

    def _model(self, model: str, version: str, call: list[str]) -> Route | None:
        service = self._service
        match call:
            case []:
                return _json(lambda: service.model_metadata(model, version))
            case ["config"]:
                return _json(lambda: service.model_configuration(model, version))
            case ["stats"]:
                return _json(lambda: service.statistics(model, version))
            case ["ready"]:
                return _fixed(lambda: self._ready(model, version))
        return None

    async def _infer(self, request: Request, model: str, version: str) -> Response:
        self._service.check_model(model, version)
        decoded, wanted = codec.decode(
            request.body,
            _json_bytes(request),
            model,
            version,
            request.arrival,
            _header_deadline(request),
            _header_priority(request),
        )
        encoded = codec.encode(await self._service.infer(decoded), wanted)
        if encoded.json_bytes is None:
            return Response(encoded.body)
        lengths: Header = (b"inference-header-content-length", b"%d" % encoded.json_bytes)
        return Response(encoded.body, BINARY, headers=(lengths,))

    async def _rank(self, request: Request) -> Response:
        context = self._service.signature.context
        decoded = rank_json.decode(
            request.body, context, request.arrival, _header_deadline(request), _header_priority(request)
        )
        return Response(rank_json.encode(decoded, await self._service.rank(decoded)), JSON)

    async def _trace(self, request: Request) -> Response:
        return Response(await self._service.trace(_seconds(request)), JSON, headers=(_TRACE_NAME,))

    async def _index(self, request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(request.body, type=dict[str, Any]) if request.body.strip() else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedRequest(f"the body is not a JSON object: {error}") from error
        return json_response(self._service.index(only_ready=wanted.get("ready") is True))

    def _ready(self, model: str = "", version: str = "") -> Response:
        if model:
            self._service.check_model(model, version)
        if obstacle := self._service.obstacle:
            raise obstacle
        return Response()


def _fixed(make: Callable[[], Response]) -> Route:
    async def answer(request: Request) -> Response:
        return make()

    return Route(answer)


def _json(make: Callable[[], Any]) -> Route:
    return _fixed(lambda: json_response(make()))


def _json_bytes(request: Request) -> int | None:
    value = request.headers.get(_JSON_BYTES)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise MalformedRequest(
            f"header Inference-Header-Content-Length is {quoted(value.decode('latin-1'))}; it takes a byte count"
        )
    return int(value)


def _header_deadline(request: Request) -> float | None:
    value = request.headers.get(_DEADLINE)
    return None if value is None else deadline.from_header(value.decode("latin-1"), request.arrival)


def _seconds(request: Request) -> float | None:
    """`seconds` of the query, None without a query."""
    text = request.query.decode("latin-1")
    if not text:
        return None
    fields = parse_qsl(text, keep_blank_values=True)
    try:
        ((name, value),) = fields
        seconds = float(value)
    except ValueError:
        name, seconds = "", math.nan
    if name != "seconds" or not 0 < seconds < math.inf:
        raise MalformedRequest(f"the query {quoted(text)} is not seconds=N with a number above 0")
    return seconds


def _header_priority(request: Request) -> Priority | None:
    value = request.headers.get(_PRIORITY)
    return None if value is None else priority.from_header(value.decode("latin-1"))
