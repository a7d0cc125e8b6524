"""Real servers, and the oracle they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flame.config import load
from flame.engine.presets import preset
from flame.engine.spec import ModelSpec
from flame.ranker import Ranker
from flame.server.signature import Signature
from tests.server.asking import Reply, ask_grpc, ask_http
from tests.server.questions import GOOD
from tests.server.running import Server
from tests.server.tiny_server import MODEL, known_store


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return preset("tiny-climber")


@pytest.fixture(scope="session")
def signature(spec: ModelSpec) -> Signature:
    return Signature(spec)


@pytest.fixture(scope="session")
def oracle(spec: ModelSpec) -> Iterator[Ranker]:
    """The reference backend on the same model and store, in this process."""
    config = load(environ={}, overrides={"engine.backend": "eager", "features.fetch_timeout_ms": 60_000})
    store = known_store(spec.input)
    with Ranker.load(MODEL, config, store=store) as ranker:
        yield ranker


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Server]]:
    """Starts a server with settings, `start(**{"server.drain_s": 1})`; it is gone when the tests are."""
    servers: list[Server] = []

    def starter(**settings: Any) -> Server:
        servers.append(Server(**settings))
        return servers[-1]

    yield starter
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def server(start: Callable[..., Server]) -> Server:
    """One server with ordinary settings for all tests."""
    return start()


@pytest.fixture(scope="session")
def small_server(start: Callable[..., Server]) -> Server:
    """One server with tiny limits."""
    return start(**{"orchestrator.max_in_flight": 2, "server.max_body_bytes": 4096, "engine.backend": "eager"})


@pytest.fixture(params=["http", "grpc"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Reply]:
    """Asks a server over the protocol of the test: `ask(server, question)`."""
    return {"http": ask_http, "grpc": ask_grpc}[request.param]


@pytest.fixture
def still_serves(server: Server) -> Iterator[None]:
    """The same server answers a good request over both protocols afterwards."""
    yield
    assert ask_http(server, GOOD).status == 200
    assert ask_grpc(server, GOOD).status == "OK"
