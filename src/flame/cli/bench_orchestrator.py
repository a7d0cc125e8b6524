"""`flame bench orchestrator`: the policies of planning under mixed traffic, on a CPU or on a GPU."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from flame.cli import options

TEXT = """\
Sends mixed traffic to an orchestrator of each policy, in this process and on one engine: capacity, open loop at a share
of it, overload with deadlines, reuse of encoded histories, and what planning and all of Python cost. On a GPU
preset:flame-long with histories of 1024 events and 128, 256, 512 or 1024 candidates; on a CPU preset:flame-base with a
quarter of both. Profiles, executors and states are settings: --set orchestrator.executors=2.
"""

EXAMPLES = """
flame bench orchestrator
flame bench orchestrator --quick --policies implicit,cost
flame bench orchestrator --device cuda --output orchestrator.json --plot orchestrator.png
flame bench orchestrator --device cuda --set orchestrator.executors=3 --set orchestrator.users=1,4,16
flame bench plot orchestrator.json orchestrator.png
"""


def add(parts: Any) -> None:
    """Adds the benchmark."""
    parser = options.benchmark(parts, "orchestrator", "planning under mixed traffic", TEXT, EXAMPLES)
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER (engine.device; auto: cuda where there is one)")
    parser.add_argument("--model", metavar="MODEL_DIR", help="(GPU: preset:flame-long; CPU: preset:flame-base)")
    parser.add_argument("--history", type=options.count, metavar="N", help="events of every user (GPU: 1024; CPU: 256)")
    parser.add_argument(
        "--candidates", metavar="COUNTS", help="128, or 128,256,512 at random, or lognormal:MEDIAN,SIGMA"
    )
    parser.add_argument(
        "--policies", type=options.names, metavar="NAME,...", help="first the one to compare with (all)"
    )
    parser.add_argument("--seconds", type=options.amount, metavar="S", help="measured in every run (2)")
    parser.add_argument("--rounds", type=options.count, metavar="N", help="runs of each kind, medians of them (3)")
    parser.add_argument("--deadline-ms", type=options.amount, metavar="MS", help="of the goodput (GPU: 25; CPU: 100)")
    parser.add_argument("--share", type=options.amount, metavar="X", help="of the capacity, in open loop (0.8)")
    parser.add_argument("--overload", type=options.amount, metavar="X", help="times the capacity (3)")
    parser.add_argument("--quick", action="store_true", help="one round of half a second: whether it runs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="executors over time and padding, as a PNG")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Runs the benchmark on the device that was asked for."""
    device = options.device_of(options.configure(args, engine__device=args.device).engine.device)

    from flame.bench import environment, report
    from flame.bench.orchestrator import plot, setting
    from flame.bench.orchestrator.run import run as measure
    from flame.bench.progress import bar
    from flame.handover import shorten_interval

    shorten_interval()
    defaults = setting.DEFAULTS[device.partition(":")[0]]
    config = options.configure(args, defaults=defaults.settings, engine__device=device)
    observed = environment.observe()
    environment.require_quiet(observed, strict=args.strict)
    with bar() as show:
        rows, facts = measure(_bench(args, defaults), config, show)
    content = report.document("orchestrator", rows, observed, **facts)
    if args.plot:
        plot.occupancy(content, args.plot)
    if not args.json:
        report.print_table("marks", facts["marks"])
    report.emit(content, only_json=args.json, output=args.output)
    return 0


def _bench(args: Namespace, defaults: Any) -> Any:
    """What the command line says, over what the device takes by default."""
    from flame.bench.orchestrator.setting import OrchestratorBench

    given = {
        "policies": tuple(args.policies) if args.policies else None,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "share": args.share,
        "overload": args.overload,
    }
    chosen = {"rounds": 1, "seconds": 0.5, "warm_up_s": 0.1} if args.quick else {}
    return OrchestratorBench(
        model=args.model or defaults.model,
        history=args.history or defaults.traffic.history,
        candidates=options.counts(args.candidates) or defaults.traffic.candidates,
        deadline_ms=args.deadline_ms or defaults.deadline_ms,
        seed=args.seed,
        **chosen | {name: value for name, value in given.items() if value is not None},
    )
