"""`flame bench path`: what a request costs besides the model, in time and in CPU.

A real server process gets requests one after the other (closed loop, one caller, histories in the request, a new user
each time) through each protocol.

Time. Every answer tells how long the model computed; `else_ms` is the rest of the latency that the client saw: its own
sending and reading, the network stack, protocol, admission, features, planning, queue, response. The median of that
difference is held against 1 ms.

CPU. The server's processor time over the run (user and system, all threads) less the model's. The model's is its
computing time in the server times the processor seconds that one second of a launch costs; that factor is measured in
this process, where the engine runs the same profile with nothing around it (about the number of threads, less where
some of them wait). Time and not processor time is carried over, so that a slow minute of the machine hits both sides.
`else_cpu_share` is what is left over the whole, held against 15 %.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import uvloop

from flame.bench.distributions import Choice
from flame.bench.load.client import LoadError
from flame.bench.load.generator import Generator, Message
from flame.bench.load.record import Outcome
from flame.bench.load.target import Target
from flame.bench.progress import Show
from flame.bench.server_process import ServerProcess, serving
from flame.bench.workloads import Limits, Recipe, generate
from flame.config import Config
from flame.engine.build import build
from flame.engine.package import load
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile
from flame.errors import ConfigError
from flame.orchestrator.profiles import default_profiles
from flame.ranker import launch_threads

MARK_MS = 1.0
MARK_CPU_SHARE = 0.15
WARM_UP = 20
_LAUNCHES = 30
_LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class PathBench:
    """Requests per protocol and their shape; `history` None is as long as the model takes."""

    model: str = "preset:flame-base"
    history: int | None = None
    candidates: int = 128
    requests: int = 200
    seed: int = 0


def run(
    bench: PathBench, config: Config, options: Sequence[str], show: Show
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of the run; `options` are further words of the command line of `flame serve`."""
    show("measuring the engine alone", 0, 1)
    spec, processors = engine_processors(bench, config)
    show("measuring the engine alone", 1, 1)
    rows = []
    with serving(bench.model, options) as server:
        for protocol, port in (("http", server.http_port), ("grpc", server.grpc_port), ("json", server.http_port)):
            target = Target(protocol, server.host, port)  # type: ignore[arg-type]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                outcomes, cpu_s = runner.run(_drive(bench, spec, target, server, show))
            rows.append(_row(protocol, outcomes, cpu_s, processors))
    facts = {
        "model": bench.model,
        "history": bench.history or spec.input.max_history,
        "candidates": bench.candidates,
        "processors_of_a_launch": processors,
        "seed": bench.seed,
    }
    return rows, facts


def engine_processors(bench: PathBench, config: Config) -> tuple[ModelSpec, float]:
    """The model, and processor seconds per second of a launch of the profile that such a request takes."""
    package = load(bench.model, allow_code=config.engine.allow_code)
    spec = package.spec
    history = spec.input.max_history if bench.history is None else bench.history
    if history > spec.input.max_history or bench.candidates > spec.input.max_candidates:
        raise ConfigError(
            f"{bench.model} takes {spec.input.max_history} events and {spec.input.max_candidates} candidates, "
            f"asked for are {history} and {bench.candidates}"
        )
    fitting = [one for one in default_profiles(spec, config.orchestrator) if one.candidates >= bench.candidates]
    profile = min(fitting or default_profiles(spec, config.orchestrator), key=lambda one: (one.users, one.candidates))
    engine = build(package, config.engine, [profile], threads=launch_threads(config))
    buffers = engine.buffers(profile)
    buffers.words[: buffers.layout.words] = _words(spec, profile, history, bench)
    engine.rank(buffers, 1)
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(_LAUNCHES):
        engine.rank(buffers, 1)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    engine.close()
    return spec, processor / wall


def _words(spec: ModelSpec, profile: Profile, history: int, bench: PathBench) -> Any:
    """One request of the benchmark in a buffer of `profile`."""
    lengths = [tuple(sequence.capacity(history) for sequence in spec.input.sequences)]
    count = min(bench.candidates, profile.candidates)
    return random_words(spec, spec.layout(profile), lengths, [count], np.random.default_rng(bench.seed))


async def _drive(
    bench: PathBench, spec: ModelSpec, target: Target, server: ServerProcess, show: Show
) -> tuple[list[Outcome], float]:
    """What became of the requests, and the processor seconds of the server while they ran."""
    client = target.connect(connections=1)
    try:
        facts = await client.facts(None)
        schema = spec.input
        limits = Limits(
            schema.max_history, schema.max_candidates, schema.actions, schema.scenarios, schema.item_id.vocabulary - 1
        )
        total = bench.requests + WARM_UP
        history = schema.max_history if bench.history is None else bench.history
        recipe = Recipe(total, Choice((bench.candidates,)), Choice((history,)), users=total, seed=bench.seed)
        requests = [
            Message(client.message(request, facts, None), len(request.candidates))
            for request in generate(recipe, limits)
        ]
        await Generator(client, requests[:WARM_UP]).closed_loop(1, _LONGEST_S, WARM_UP)
        process = psutil.Process(server.pid)
        before = process.cpu_times()
        ended = itertools.count(1)
        measured = Generator(
            client, requests[WARM_UP:], tick=lambda _: show(f"{target.protocol}, requests", next(ended), bench.requests)
        )
        outcomes = await measured.closed_loop(1, _LONGEST_S, bench.requests)
        after = process.cpu_times()
    finally:
        await client.close()
    return outcomes, after.user + after.system - before.user - before.system


def _row(protocol: str, outcomes: Sequence[Outcome], cpu_s: float, processors: float) -> dict[str, Any]:
    failed = [one.reply.outcome for one in outcomes if one.reply.outcome != "ok"]
    if failed:
        raise LoadError(f"{len(failed)} of {len(outcomes)} requests failed: {', '.join(sorted(set(failed)))}")
    total = np.array([1e3 * (one.done - one.sent) for one in outcomes])
    model = np.array([one.reply.stages["compute"] / 1e3 for one in outcomes])
    cpu, model_cpu = 1e3 * cpu_s / len(outcomes), float(model.mean()) * processors
    return {
        "protocol": protocol,
        "requests": len(outcomes),
        "ms_p50": float(np.median(total)),
        "ms_p99": float(np.percentile(total, 99)),
        "model_ms_p50": float(np.median(model)),
        "else_ms_p50": float(np.median(total - model)),
        "else_ms_p99": float(np.percentile(total - model, 99)),
        "else_ms_mark": MARK_MS,
        **{
            f"{stage}_us_p50": float(np.median([one.reply.stages[stage] for one in outcomes]))
            for stage in ("features", "queue")
        },
        "cpu_ms": cpu,
        "model_cpu_ms": model_cpu,
        "else_cpu_ms": cpu - model_cpu,
        "else_cpu_share": (cpu - model_cpu) / cpu,
        "else_cpu_share_mark": MARK_CPU_SHARE,
    }
