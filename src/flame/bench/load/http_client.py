"""HTTP as a protocol of the load generator: Open Inference Protocol with binary tensors, or `/v1/rank` in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from flame.bench.load import http_messages
from flame.bench.load.client import OK, Durations, LoadError, ModelFacts, Reply, stages_of
from flame.bench.load.http_connections import Answer, Connections, NotConnected
from flame.records import RankRequest, Scores


class _Failure(msgspec.Struct):
    kind: str = ""
    error: str = ""


class _Ranked(msgspec.Struct):
    times_ms: dict[str, float]


class _Inferred(msgspec.Struct):
    parameters: dict[str, bool | int | str] = {}


_failure_decoder = msgspec.json.Decoder(_Failure)
_ranked_decoder = msgspec.json.Decoder(_Ranked)
_inferred_decoder = msgspec.json.Decoder(_Inferred)


class HttpClient:
    """A `Client` over at most `connections` connections; with `json` it asks `/v1/rank`."""

    def __init__(self, host: str, port: int, *, json: bool, connections: int) -> None:
        self._host = f"{host}:{port}"
        self._json = json
        self._connections = Connections(host, port, connections)

    async def facts(self, model: str | None) -> ModelFacts:
        found = await self._call("POST", "/v2/repository/index", b"{}")
        models = {entry["name"]: entry["version"] for entry in found}
        if model is None and len(models) == 1:
            model = next(iter(models))
        if model is None or model not in models:
            raise LoadError(f"the server has the models {', '.join(models) or 'none'}; name one of them with --model")
        return ModelFacts.of(await self._call("GET", f"/v2/models/{model}/config"), models[model])

    async def durations(self, model: str) -> Durations:
        found = await self._call("GET", f"/v2/models/{model}/stats")
        stages = found["model_stats"][0]["inference_stats"]
        return {stage: (value["count"], value["ns"]) for stage, value in stages.items()}

    def message(self, request: RankRequest, facts: ModelFacts, deadline_ms: float | None) -> bytes:
        if self._json:
            return http_messages.rank(request, self._host, deadline_ms)
        return http_messages.infer(request, facts.name, self._host, deadline_ms)

    async def send(self, message: bytes) -> Reply:
        try:
            answer = await self._connections.ask(message)
        except NotConnected:
            return Reply("cannot_connect")
        except ConnectionError:
            return Reply("disconnected")
        return self._judged(answer)

    async def scores(self, message: bytes, facts: ModelFacts) -> Scores:
        answer = await self._asked(message)
        if self._json:
            by_task = msgspec.json.decode(answer.body)["scores"]
            return np.array([by_task[task] for task in facts.tasks], np.float32).T
        return http_messages.scores(answer.body, answer.headers.get(http_messages.JSON_BYTES), facts.tasks)

    async def close(self) -> None:
        self._connections.close()

    def _judged(self, answer: Answer) -> Reply:
        """The reply in an answer. One that is not what the protocol promises is "bad_answer"."""
        if answer.status != 200:
            return Reply(_kind(answer))
        try:
            return Reply(OK, self._stages(answer))
        except (msgspec.DecodeError, ValueError, KeyError):
            return Reply("bad_answer")

    def _stages(self, answer: Answer) -> Mapping[str, float]:
        if self._json:
            times = _ranked_decoder.decode(answer.body).times_ms
            return {stage: 1e3 * milliseconds for stage, milliseconds in times.items()}
        head = answer.body[: int(answer.headers[http_messages.JSON_BYTES])]
        return stages_of(_inferred_decoder.decode(head).parameters)

    async def _call(self, method: str, path: str, body: bytes = b"") -> Any:
        answer = await self._asked(http_messages.call(method, path, self._host, body))
        return msgspec.json.decode(answer.body)

    async def _asked(self, message: bytes) -> Answer:
        """The answer to a call outside the measurement. Raises `LoadError` unless it is a good one."""
        try:
            answer = await self._connections.ask(message)
        except ConnectionError as error:
            raise LoadError(f"no answer from {self._host}: {error}; is the server running?") from error
        if answer.status != 200:
            text = answer.body[:300].decode("utf-8", "replace")
            raise LoadError(f"{self._host} answered {answer.status} to {message.split(b' HTTP')[0].decode()}: {text}")
        return answer


def _kind(answer: Answer) -> str:
    """The kind of error that the server names, else the status."""
    try:
        named = _failure_decoder.decode(answer.body).kind
    except (msgspec.DecodeError, UnicodeDecodeError):
        named = ""
    return named or f"http_{answer.status}"
