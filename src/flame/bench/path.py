"""`flame bench path`: what a request costs besides the model, in time and in CPU.

A real server process gets requests one after the other (closed loop, one caller, histories in the request, a new user
each time) through each protocol, in blocks.

Time. Every answer tells how long the model computed; `else_ms` is the rest of the latency that the client saw: its own
sending and reading, the network stack, protocol, admission, features, planning, queue, response. The median of that
difference is held against 1 ms.

CPU. The server's processor time per request (user and system, all threads, by `psutil`) less the model's. The model's
is the processor time of one launch of the same profile with the same threads in this process, where the engine runs
with nothing around it; these launches alternate with the blocks of requests, so that a slow minute of the machine hits
both sides. Multiplying the time of a launch by its threads would be simpler and wrong: threads wait for each other and
for other processes. `else_cpu_share` is what is left over the whole, held against 15 %.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import psutil
import uvloop
from msgspec.structs import replace

from flame.bench.alone import EngineAlone
from flame.bench.distributions import Choice
from flame.bench.load.client import Client, LoadError
from flame.bench.load.generator import Generator, Message
from flame.bench.load.record import Outcome, stage_times
from flame.bench.load.target import Target
from flame.bench.progress import Show
from flame.bench.server_process import ServerProcess, serving
from flame.bench.workloads import Limits, Recipe, generate
from flame.config import Config
from flame.engine.spec import ModelSpec

MARK_MS = 1.0
MARK_CPU_SHARE = 0.15
WARM_UP = 20
BLOCK = 25
_LONGEST_S = 600.0

Protocol = Literal["http", "grpc", "json"]
_PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc", "json")


@dataclass(frozen=True, slots=True)
class PathBench:
    """Requests per protocol and their shape; `history` None is as long as the model takes."""

    model: str = "preset:flame-base"
    history: int | None = None
    candidates: int = 128
    requests: int = 200
    seed: int = 0


@dataclass(slots=True)
class _Measured:
    """What one protocol gave: all requests, and processor seconds of the server and of as many launches alone."""

    outcomes: list[Outcome]
    server_cpu_s: float = 0.0
    alone_cpu_s: float = 0.0
    launches: int = 0


def run(
    bench: PathBench, config: Config, options: Sequence[str], show: Show
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of the run; `options` are further words of the command line of `flame serve`."""
    show("building the engine", 0, 1)
    rows = []
    with EngineAlone(bench.model, config, bench.history, bench.candidates, bench.seed) as alone:
        show("building the engine", 1, 1)
        with serving(bench.model, options) as server:
            for protocol in _PROTOCOLS:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    measured = runner.run(_drive(bench, alone, protocol, server, show))
                rows.append(_row(protocol, measured))
        facts = {"history": alone.history, "profile": str(alone.profile), "block": BLOCK}
    return rows, {"model": bench.model, "candidates": bench.candidates, "seed": bench.seed} | facts


async def _drive(
    bench: PathBench, alone: EngineAlone, protocol: Protocol, server: ServerProcess, show: Show
) -> _Measured:
    target = Target(protocol, server.host, server.grpc_port if protocol == "grpc" else server.http_port)
    client = target.connect(connections=1)
    process, ended, measured = psutil.Process(server.pid), itertools.count(1), _Measured([])
    try:
        messages = await _messages(bench, alone, client)
        await Generator(client, messages[:WARM_UP]).closed_loop(1, _LONGEST_S, WARM_UP)
        for start in range(WARM_UP, len(messages), BLOCK):
            block = messages[start : start + BLOCK]
            generator = Generator(
                client, block, tick=lambda _: show(f"{protocol}, requests", next(ended), bench.requests)
            )
            before = process.cpu_times()
            measured.outcomes += await generator.closed_loop(1, _LONGEST_S, len(block))
            after = process.cpu_times()
            measured.server_cpu_s += after.user + after.system - before.user - before.system
            measured.alone_cpu_s += alone.launch(len(block))
            measured.launches += len(block)
    finally:
        await client.close()
    return measured


async def _messages(bench: PathBench, alone: EngineAlone, client: Client) -> list[Message]:
    """Every request is another user's, so that nothing encoded for one can serve the next."""
    facts = await client.facts(None)
    total = bench.requests + WARM_UP
    recipe = Recipe(total, Choice((bench.candidates,)), Choice((alone.history,)), users=total, seed=bench.seed)
    workload = generate(recipe, _limits(alone.spec))
    requests = [
        replace(request, user=index + 1, history=workload.histories[index]) for index, request in enumerate(workload)
    ]
    return [Message(client.message(request, facts, None), len(request.candidates)) for request in requests]


def _limits(spec: ModelSpec) -> Limits:
    own = spec.input
    return Limits(own.max_history, own.max_candidates, own.actions, own.scenarios, own.item_id.vocabulary - 1)


def _row(protocol: str, measured: _Measured) -> dict[str, Any]:
    outcomes = measured.outcomes
    failed = [one.reply.outcome for one in outcomes if one.reply.outcome != "ok"]
    if failed:
        raise LoadError(f"{len(failed)} of {len(outcomes)} requests failed: {', '.join(sorted(set(failed)))}")
    total = np.array([1e3 * (one.done - one.sent) for one in outcomes])
    model = np.array([one.reply.stages["compute"] / 1e3 for one in outcomes])
    cpu = 1e3 * measured.server_cpu_s / len(outcomes)
    model_cpu = 1e3 * measured.alone_cpu_s / measured.launches
    return {
        "protocol": protocol,
        "requests": len(outcomes),
        "ms_p50": float(np.median(total)),
        "ms_p99": float(np.percentile(total, 99)),
        "model_ms_p50": float(np.median(model)),
        "else_ms_p50": float(np.median(total - model)),
        "else_ms_p99": float(np.percentile(total - model, 99)),
        "else_ms_mark": MARK_MS,
        "cpu_ms": cpu,
        "model_cpu_ms": model_cpu,
        "else_cpu_ms": cpu - model_cpu,
        "else_cpu_share": (cpu - model_cpu) / cpu,
        "else_cpu_share_mark": MARK_CPU_SHARE,
        "stages_us": stage_times(one.reply.stages for one in outcomes),
    }
