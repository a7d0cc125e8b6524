"""The load generator against a real little server: what is late is seen as late, what fails is named."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
import uvloop

from flame.bench.load.arrivals import MOST_ARRIVALS, poisson
from flame.bench.load.generator import Generator, Message
from flame.bench.load.http_client import HttpClient
from flame.bench.load.http_connections import Connections
from flame.bench.load.record import Outcome, Window, summarise
from flame.errors import ConfigError

GOOD = b'{"times_ms": {"compute": 0.007}}'


def loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs it in the event loop that `flame load` uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def drive(http: Any, handler: Any, *, due: Any = None, timeout_s: float = 5.0, connections: int = 64, **closed: Any):
    """Outcomes of an open loop at the times `due`, or of a closed loop."""

    async def run() -> list[Outcome]:
        async with http.server(handler) as port:
            client = HttpClient("127.0.0.1", port, json=True, connections=connections)
            generator = Generator(client, [Message(http.message(), 10)], timeout_s)
            outcomes = await (generator.open_loop(due) if due is not None else generator.closed_loop(**closed))
            await client.close()
            return outcomes

    return loop(run())


def test_a_stall_shows_in_open_loop_and_hides_in_closed_loop(http: Any) -> None:
    """The server freezes once for 0.5 s. At 200/s about 100 requests are due in that time: all must look late."""

    def stalling():
        frozen_until = 0.0

        async def handler(count: int, body: bytes) -> bytes:
            nonlocal frozen_until
            if count == 100:
                frozen_until = time.monotonic() + 0.5
            while (left := frozen_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            return http.response(GOOD)

        return handler

    due = np.arange(0, 2, 1 / 200)
    row = summarise(drive(http, stalling(), due=due, connections=1), Window(0, 2), None)
    assert row["failed"] == 0
    assert row["ms_p99"] > 400
    assert row["ms_max"] >= 500

    closed = drive(http, stalling(), callers=1, duration_s=2.0, most=10_000)
    late = [one for one in closed if one.done - one.due > 0.4]
    assert len(late) == 1, "a closed loop sends nothing during the stall: this is what open loop is for"
    assert np.percentile([one.done - one.due for one in closed], 99) < 0.4


def test_latency_counts_from_the_intended_sending(http: Any) -> None:
    async def handler(count: int, body: bytes) -> bytes:
        await asyncio.sleep(0.05)
        return http.response(GOOD)

    outcomes = drive(http, handler, due=np.zeros(4), connections=1)
    latencies = sorted(one.done - one.due for one in outcomes)
    for place, latency in enumerate(latencies, 1):
        assert latency >= 0.05 * place * 0.99, "one connection: each waits for those before it"


def test_errors_are_counted_by_kind_and_leave_the_rest_alone(http: Any) -> None:
    async def handler(count: int, body: bytes) -> bytes | None:
        if count % 5 == 1:
            return http.response(b'{"kind": "queue_full"}', "429 Too Many")
        if count % 5 == 2:
            return None
        if count % 5 == 3:
            await asyncio.sleep(60)
        return http.response(GOOD)

    row = summarise(drive(http, handler, due=np.arange(50) / 250, timeout_s=0.5), Window(0, 0.2), None)
    assert row["errors"] == {"queue_full": 10, "disconnected": 10, "timeout": 10}
    assert row["requests"] == 50
    assert row["failed"] == 30
    assert row["goodput_share"] == pytest.approx(0.4)
    assert row["stages_us"] == {"compute": {"p50": 7.0, "p99": 7.0}}
    assert row["ms_max"] < 500, "requests given up are no latencies"


def test_a_timed_out_answer_is_never_taken_for_the_next_one(http: Any) -> None:
    """Every answer carries its request's body; the slow ones are given up and answer late."""
    seen: list[tuple[bytes, bytes]] = []

    async def handler(count: int, body: bytes) -> bytes:
        await asyncio.sleep(0.2 if count % 3 == 0 else 0.0)
        return http.response(body)

    async def run() -> None:
        async with http.server(handler) as port:
            connections = Connections("127.0.0.1", port, most=4)
            for index in range(30):
                body = b"%d" % index
                try:
                    async with asyncio.timeout(0.1):
                        answer = await connections.ask(http.message(body))
                        seen.append((body, answer.body))
                except TimeoutError:
                    continue
            connections.close()

    loop(run())
    assert len(seen) == 20
    assert all(asked == answered for asked, answered in seen)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"this is not http\r\n\r\n", "disconnected"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort", "timeout"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "bad_answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n\xff\xfe{", "bad_answer"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops", "http_502"),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\n[]", "http_500"),
    ],
    ids=["no http", "cut short", "no times", "no text", "a gateway's error", "an error of another shape"],
)
def test_broken_answers_are_errors_of_one_request(http: Any, raw: bytes, kind: str) -> None:
    async def handler(count: int, body: bytes) -> bytes:
        return raw if count == 0 else http.response(GOOD)

    outcomes = drive(http, handler, callers=1, duration_s=9.0, most=3, timeout_s=0.3)
    assert [one.reply.outcome for one in outcomes] == [kind, "ok", "ok"]


def test_a_chunked_answer_and_one_that_closes_are_read(http: Any) -> None:
    async def handler(count: int, body: bytes) -> bytes:
        if count % 2:
            return http.response(GOOD, extra="connection: close\r\n")
        return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)

    outcomes = drive(http, handler, callers=2, duration_s=5.0, most=10)
    assert [one.reply.outcome for one in outcomes] == ["ok"] * 10


def test_nobody_listens() -> None:
    async def run() -> str:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        return (await HttpClient("127.0.0.1", port, json=True, connections=1).send(b"x")).outcome

    assert loop(run()) == "cannot_connect"


def test_closed_loop_keeps_so_many_in_flight_and_stops_at_the_count(http: Any) -> None:
    running = most = 0

    async def handler(count: int, body: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        return http.response(GOOD)

    outcomes = drive(http, handler, callers=7, duration_s=30.0, most=100)
    assert len(outcomes) == 100
    assert most == 7


def test_a_hanging_server_ends_the_run_in_bounded_time(http: Any) -> None:
    async def handler(count: int, body: bytes) -> None:
        await asyncio.sleep(60)

    start = time.monotonic()
    outcomes = drive(http, handler, due=np.arange(20) / 100, timeout_s=0.3, connections=2)
    assert time.monotonic() - start < 5
    assert {one.reply.outcome for one in outcomes} == {"timeout"}
    row = summarise(outcomes, Window(0, 0.2), 100)
    assert row["ms_p50"] is None
    assert row["goodput"] == 0


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    due = poisson(1000, 50, seed=3)
    assert np.all(np.diff(due) >= 0)
    assert due[-1] < 50
    assert len(due) == pytest.approx(50_000, rel=0.03)
    gaps = np.diff(due)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03), "exponential gaps: deviation equals mean"
    counts = np.histogram(due, bins=5000, range=(0, 50))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.1), "counts in equal bins: variance equals mean"
    np.testing.assert_array_equal(due, poisson(1000, 50, seed=3))
    assert not np.array_equal(due[:100], poisson(1000, 50, seed=4)[:100])


@pytest.mark.parametrize(("rate", "duration"), [(0, 1), (-1, 1), (1, 0), (MOST_ARRIVALS, 2)])
def test_impossible_arrivals_are_refused(rate: float, duration: float) -> None:
    with pytest.raises(ConfigError, match=r"at most|above 0"):
        poisson(rate, duration, 0)
