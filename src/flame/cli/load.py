"""`flame load`: a load generator for a running server."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from flame.cli import options

TEXT = """\
Sends seeded requests to a running server and reports latencies, rates, goodput and errors.

  --rate R          open loop: Poisson arrivals at R requests a second, whether or not the server keeps up; a latency
                    counts from the moment the request was meant to be sent (no coordinated omission)
  --concurrency N   closed loop: N callers that send again once they were answered
  --search-p99 MS   the highest open-loop rate whose 99th percentile stays at MS or below: bisected in short steps
                    (--step), confirmed by a run of --duration

URL is http://HOST:PORT (Open Inference Protocol with binary tensors), http://HOST:PORT/v1/rank (JSON) or
grpc://HOST:PORT. The last line of standard output is one JSON document.
"""

EXAMPLES = """
flame load http://127.0.0.1:8000 --rate 20 --duration 30 --deadline-ms 100
flame load grpc://127.0.0.1:8001 --concurrency 4 --candidates 128,256,512,1024 --history 512
flame load http://127.0.0.1:8000/v1/rank --rate 5 --candidates lognormal:200,0.7 --history store --users 900
flame load http://127.0.0.1:8000 --search-p99 100 --output held.json --plot held.png
flame load http://127.0.0.1:8000 --rate 20 --check preset:flame-base
"""


def add(commands: Any) -> None:
    """Adds the command."""
    parser = options.command(
        commands, "load", "send load to a running server", TEXT, EXAMPLES, options.config_options()
    )
    parser.add_argument("url", metavar="URL", help="where the server listens")
    _add_mode(parser)
    _add_traffic(parser)
    options.add_report(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --search-p99: p99 over the rate, as a PNG")
    parser.set_defaults(run=run)


def _add_mode(parser: ArgumentParser) -> None:
    mode = parser.add_argument_group("how to send").add_mutually_exclusive_group(required=True)
    mode.add_argument("--rate", type=options.amount, metavar="R", help="open loop, requests per second")
    mode.add_argument("--concurrency", type=options.count, metavar="N", help="closed loop, callers")
    mode.add_argument("--search-p99", type=options.amount, metavar="MS", help="search the highest open-loop rate")
    limits = parser.add_argument_group("how long")
    limits.add_argument("--duration", type=options.amount, default=10.0, metavar="S", help="seconds measured (10)")
    limits.add_argument("--warm-up", type=options.amount, default=1.0, metavar="S", help="seconds before that (1)")
    limits.add_argument("--step", type=options.amount, default=5.0, metavar="S", help="seconds of a search step (5)")
    limits.add_argument(
        "--requests", type=options.count, default=1_000_000, metavar="N", help="end after so many (1000000)"
    )
    limits.add_argument("--timeout", type=options.amount, default=10.0, metavar="S", help="give a request up (10 s)")
    limits.add_argument(
        "--deadline-ms", type=options.amount, metavar="MS", help="told to the server, and the bound of the goodput"
    )
    limits.add_argument(
        "--connections", type=options.count, default=256, metavar="N", help="HTTP connections at most (256)"
    )


def _add_traffic(parser: ArgumentParser) -> None:
    traffic = parser.add_argument_group("what to send")
    traffic.add_argument("--model", metavar="NAME", help="needed only where a server has several")
    traffic.add_argument(
        "--candidates", metavar="COUNTS", help="128, or 128,256,512 at random, or lognormal:MEDIAN,SIGMA (the limit)"
    )
    traffic.add_argument(
        "--history", default="full", metavar="COUNTS", help="events per user, likewise; full, or store: ids only (full)"
    )
    traffic.add_argument("--users", type=options.count, default=1000, metavar="N", help="user ids 1..N (1000)")
    traffic.add_argument("--items", type=options.count, metavar="N", help="item ids 1..N (the model's vocabulary)")
    traffic.add_argument("--zipf", type=float, default=1.05, metavar="A", help="exponent of item popularity (1.05)")
    traffic.add_argument(
        "--distinct", type=options.count, default=2000, metavar="N", help="different requests, sent in turn (2000)"
    )
    traffic.add_argument("--seed", type=int, default=0, help="(0)")
    traffic.add_argument(
        "--check", metavar="MODEL_DIR", help="first compare answers with the oracle in this process, to 1e-4"
    )


def run(args: Namespace) -> int:
    """Runs the load and prints the report; 1 where the server answered nothing."""
    config = options.configure(args)

    from flame.bench import environment, plot, report
    from flame.bench.load import run as load
    from flame.bench.load.check import Check
    from flame.bench.load.target import parse_target
    from flame.bench.progress import bar

    plan = load.LoadPlan(
        target=parse_target(args.url),
        model=args.model,
        rate=args.rate,
        concurrency=args.concurrency,
        search_p99_ms=args.search_p99,
        duration_s=args.duration,
        warm_up_s=args.warm_up,
        step_s=args.step,
        most_requests=args.requests,
        deadline_ms=args.deadline_ms,
        timeout_s=args.timeout,
        connections=args.connections,
        candidates=options.counts(args.candidates),
        history=options.counts(args.history, least=0, words=("full", "store")),
        users=args.users,
        items=args.items,
        zipf=args.zipf,
        distinct=args.distinct,
        seed=args.seed,
        check=Check(args.check, config) if args.check else None,
    )
    observed = environment.observe()
    environment.require_quiet(observed, strict=args.strict)
    with bar() as show:
        result = load.run(plan, show)
    content = report.document("load", result.rows, observed, **result.facts)
    report.emit(content, only_json=args.json, output=args.output)
    if args.plot:
        plot.rates(result.rows, args.plot)
    return 0 if result.answered else 1
