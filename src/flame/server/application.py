"""The ASGI application: routes a request, watches that its client stays, and turns errors into answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from flame.errors import BodyTooLarge, RequestCancelled, ShuttingDown
from flame.server import asgi, body
from flame.server.asgi import Header, Receive, Request, Response, Scope, Send
from flame.server.failures import Failure, explain
from flame.server.routes import Route, Routes
from flame.server.service import Service

_RETRY_AFTER: Header = (b"retry-after", b"1")
_CLOSE: Header = (b"connection", b"close")


class Application:
    """One service as a raw ASGI application for HTTP."""

    def __init__(self, service: Service, routes: Routes, max_body_bytes: int) -> None:
        self._service = service
        self._routes = routes
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; never raises."""
        assert scope["type"] == "http", "started without lifespan and websocket"
        arrival = time.monotonic()
        try:
            response = await self._answer(scope, receive, arrival)
        except asyncio.CancelledError:
            # The task ends with this answer, so the cancellation need not go on. Nobody may be there to read it.
            response = self._failed(explain(self._reason_of_cancelling()))
        except BodyTooLarge as error:
            response = self._failed(explain(error), _CLOSE)
            await asgi.start(send, response, ends=False)
            await body.discard(receive)
            await asgi.finish(send)
            return
        except Exception as error:
            response = self._failed(explain(error))
        await asgi.start(send, response, ends=True)

    async def _answer(self, scope: Scope, receive: Receive, arrival: float) -> Response:
        route = self._routes.find(scope["method"], scope["path"])
        headers = dict(scope["headers"])
        if not route.scores and scope["method"] != "POST":
            return await route.answer(Request(headers, b"", arrival, scope["query_string"]))
        content = await body.read(receive, headers, self._limit)
        request = Request(headers, content, arrival, scope["query_string"])
        if not route.scores:
            return await route.answer(request)
        response = await _while_connected(receive, route, request)
        self._service.metrics.requests.labels("http", "ok").inc()
        return response

    def _reason_of_cancelling(self) -> ShuttingDown | RequestCancelled:
        if self._service.draining:
            return ShuttingDown("the server shut down before this request was done; use another one")
        return RequestCancelled("the client went away before the work was done")

    def _failed(self, failure: Failure, *headers: Header) -> Response:
        self._service.metrics.requests.labels("http", failure.kind).inc()
        if failure.http_status == 429:
            headers = (*headers, _RETRY_AFTER)
        content: Mapping[str, str] = {"error": failure.message, "kind": failure.kind}
        return asgi.json_response(content, failure.http_status, headers)


async def _while_connected(receive: Receive, route: Route, request: Request) -> Response:
    """The route's answer; cancels the calling task when the client goes away before there is one."""
    task = asyncio.current_task()
    assert task is not None
    watch = asyncio.create_task(_cancel_when_gone(receive, task))
    try:
        return await route.answer(request)
    finally:
        watch.cancel()


async def _cancel_when_gone(receive: Receive, task: asyncio.Task[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
