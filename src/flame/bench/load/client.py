"""What the load generator needs of a protocol: facts about the model, prepared messages, and how each one ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from flame.errors import FlameError
from flame.records import RankRequest, Scores

OK = "ok"


class LoadError(FlameError):
    """The server that is to be loaded cannot be reached, or is none of FLAME's."""

    kind = "load_error"


class Reply(NamedTuple):
    """How one request ended.

    `outcome` is "ok" or the kind of error: a `kind` of `flame.errors` where the server names one, else what the
    protocol knows ("http_502", "unavailable"), "disconnected", "cannot_connect", "timeout" or "bad_answer". `stages`
    are the microseconds per stage that this answer reports, empty where it reports none.
    """

    outcome: str
    stages: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a server tells of its model: enough to send requests that it can take."""

    name: str
    version: str
    backend: str
    tasks: tuple[str, ...]
    max_history: int
    max_candidates: int
    actions: int
    scenarios: int
    vocabulary: int | None

    @classmethod
    def of(cls, configuration: Mapping[str, Any], version: str) -> ModelFacts:
        """From a model configuration of the Open Inference Protocol, as a plain dictionary. Raises `LoadError`."""
        parameters = {name: value["string_value"] for name, value in configuration["parameters"].items()}
        try:
            limits = {name: int(parameters[name]) for name in ("max_history", "max_candidates", "actions", "scenarios")}
        except KeyError as error:
            raise LoadError(
                f"model {configuration['name']!r} does not tell its limit {error}: is this a FLAME server?"
            ) from None
        vocabulary = parameters.get("vocabulary")
        return cls(
            name=configuration["name"],
            version=version,
            backend=configuration.get("backend", ""),
            tasks=tuple(output["name"] for output in configuration["output"]),
            vocabulary=None if vocabulary is None else int(vocabulary),
            **limits,
        )


def stages_of(parameters: Mapping[str, bool | int | str]) -> dict[str, float]:
    """Microseconds by stage from the parameters of an inference answer: those named `<stage>_us`."""
    return {
        name.removesuffix("_us"): float(value)
        for name, value in parameters.items()
        if name.endswith("_us") and not isinstance(value, str)
    }


Durations = Mapping[str, tuple[int, int]]
"""What the server adds up since its start, by stage: how often, and nanoseconds in all."""


class Client(Protocol):
    """Sends messages of one protocol to one server. Used from one event loop; many `send` may run at a time."""

    async def facts(self, model: str | None) -> ModelFacts:
        """The named model, or the only one. Raises `LoadError`."""

    async def durations(self, model: str) -> Durations:
        """What the server's statistics say now."""

    def message(self, request: RankRequest, facts: ModelFacts, deadline_ms: float | None) -> bytes:
        """`request` as bytes ready to be sent; the server is told the deadline where there is one."""

    async def send(self, message: bytes) -> Reply:
        """Sends one prepared message and waits for its answer. A failed request is a `Reply`, not an exception.

        When cancelled (the generator gave the request up) it frees what it held and leaves nothing behind that
        could be taken for the answer of another request.
        """

    async def scores(self, message: bytes, facts: ModelFacts) -> Scores:
        """Sends one message outside the measurement: scores `[candidates, tasks]`. Raises `LoadError`."""

    async def close(self) -> None:
        """Closes all connections."""
