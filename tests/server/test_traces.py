"""Traces of a real server under load: over HTTP, and in the file that it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flame.errors import ConfigError, QueueFull
from flame.orchestrator.timeline import QueueLength, Recording, Timeline
from flame.server.traces import TraceFile, Traces
from tests.chrome_traces import Trace, launches, read
from tests.server.asking import Question, ask_grpc
from tests.server.questions import tensors
from tests.server.running import Server

START = Callable[..., Server]
SETTINGS = {"engine.backend": "eager", "orchestrator.executors": 2, "orchestrator.users": [1, 4]}


def rank(server: Server, number: int) -> None:
    body = {"user": 1 + number % 7, "candidates": list(range(1, 2 + number % 23)), "request_id": f"r{number}"}
    assert server.request("POST", "/v1/rank", json.dumps(body).encode())[0] == 200


def load(server: Server, count: int) -> None:
    """`count` requests over HTTP and one over gRPC for each ten of them, eight at a time."""
    with ThreadPoolExecutor(8) as clients:
        others = [clients.submit(ask_grpc, server, Question(tensors(seed=seed))) for seed in range(count // 10)]
        list(clients.map(lambda number: rank(server, number), range(count)))
        assert {other.result().status for other in others} == {"OK"}


def trace_of(server: Server, query: str = "") -> Trace:
    status, body, headers = server.request("GET", f"/v1/trace{query}")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    return read(body)


def check_against_metrics(trace: Trace, server: Server) -> None:
    """The trace and the counters of the server tell of the same work."""
    drawn = list(launches(trace))
    for name, count in Counter(launch.name for launch in drawn).items():
        kind, profile = name.split()
        assert server.metric("flame_launches_total", kind=kind, profile=profile) == count
    assert server.metric("flame_padding_pairs_total") == sum(launch.args["padding"] for launch in drawn)
    scored = sum(request.args["candidates"] for request in trace.requests.values())
    assert server.metric("flame_pairs_total") == scored == sum(launch.args["candidates"] for launch in drawn)
    taking_part = Counter(number for launch in drawn for number in launch.args["numbers"])
    assert taking_part == {number: request.args["launches"] for number, request in trace.requests.items()}


def test_a_server_under_load_shows_each_request_once(start: START, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    file.write_text("yesterday's")
    server = start(**SETTINGS, **{"server.trace": str(file)})
    assert file.read_text() == "yesterday's"
    looking = threading.Event()
    with ThreadPoolExecutor(1) as onlooker:
        seen = onlooker.submit(lambda: [trace_of(server) for _ in iter(looking.is_set, True)])
        load(server, 200)
        looking.set()
        assert seen.result()
    trace = trace_of(server)
    names = Counter(request.args["request_id"] for request in trace.requests.values())
    assert names == {f"r{number}": 1 for number in range(200)} | {"": 20}
    assert {request.args["outcome"] for request in trace.requests.values()} == {"ok"}
    assert set(trace.threads.values()) == {"executor 0", "executor 1"}
    assert set(trace.processes.values()) == {"requests", "cpu"}
    queue = next(marks for (_, name), marks in trace.counters.items() if name == "queue")
    assert set(queue[-1][1].values()) == {0}
    check_against_metrics(trace, server)
    server.signal(signal.SIGTERM)
    assert server.ended()["cut"] == 0
    assert read(file.read_bytes()).requests.keys() == trace.requests.keys()
    assert f"Wrote a trace of the last requests to {file}" in server.log
    assert os.listdir(tmp_path) == ["trace.json"]


def test_the_last_seconds_can_be_asked_for(server: Server) -> None:
    rank(server, 1)
    everything = trace_of(server).requests.keys()
    assert trace_of(server, "?seconds=100000").requests.keys() >= everything
    assert not trace_of(server, "?seconds=1e-9").requests
    assert server.request("HEAD", "/v1/trace")[:2] == (200, b"")


@pytest.mark.parametrize(
    "query",
    [
        "seconds=0",
        "seconds=-1",
        "seconds=nan",
        "seconds=1e999",
        "seconds=",
        "seconds",
        "second=1",
        "seconds=1&seconds=2",
    ],
)
def test_a_wrong_query_is_told(server: Server, query: str) -> None:
    status, body, _ = server.request("GET", f"/v1/trace?{query}")
    assert status == 400
    assert json.loads(body)["kind"] == "malformed_request"
    assert query in json.loads(body)["error"]


class HeldTimeline(Timeline):
    """A timeline that is read when the test lets it be."""

    def __init__(self) -> None:
        super().__init__(10)
        self.entered, self.gate = threading.Event(), threading.Event()

    def snapshot(self, seconds: float | None = None) -> Recording:
        self.entered.set()
        assert self.gate.wait(60), "the test forgot to open the gate"
        return super().snapshot(seconds)


def test_one_trace_is_made_at_a_time_and_the_loop_goes_on() -> None:
    async def ask() -> None:
        timeline = HeldTimeline()
        traces = Traces(timeline)
        first = asyncio.create_task(traces.trace(None))
        while not timeline.entered.is_set():
            await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="another client"):
            await traces.trace(None)
        timeline.gate.set()
        read(await first)
        read(await traces.trace(1.0))

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", "is no file"),
        ("absent/trace.json", "No such file"),
        ("file/trace.json", "Not a dir"),
        ("x" * 254, "too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_at_the_start(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"server.trace.*{words}"):
        TraceFile(str(tmp_path / name))
    assert os.listdir(tmp_path) == ["file"]


def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(ConfigError, match="/dev/null is no file"):
        TraceFile("/dev/null")


def test_a_trace_is_written_where_a_link_leads(tmp_path: Path) -> None:
    timeline = Timeline(10)
    timeline.queued(1.0, 2, 3)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert TraceFile(str(tmp_path / "link")).write(timeline).startswith("Wrote")
    assert (tmp_path / "link").is_symlink()
    assert timeline.snapshot().queue == (QueueLength(1.0, 2, 3),)
    assert read((tmp_path / "file").read_bytes()).counters[1, "queue"] == [(0, {"requests": 2, "planned launches": 3})]


def test_a_folder_that_vanished_is_told_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = TraceFile(str(folder / "trace.json"))
    folder.rmdir()
    assert "could not be written" in file.write(Timeline(10))
