"""`flame bench engine`: the model alone, on a CPU or on a GPU."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from flame.cli import options
from flame.config import Config

TEXT = """\
Times the model alone. On a CPU: every backend on the same packed input, in interleaved rounds, beside a large matrix
product on the same threads. On a GPU: a ladder from eager PyTorch over torch.compile and FlexAttention with captured
graphs to the fused engine, with all its parts and without one after the other, beside a large matrix product. What
differs from the oracle gets no times.
"""

EXAMPLES = """
flame bench engine
flame bench engine --scenario long --variants eager,compiled,openvino --rounds 50 --output engine.json --plot engine.png
flame bench engine --device cpu --scenario base --users 1,4 --json
flame bench engine --device cuda --scenario base,long --users 1,8,32 --variants flex-graph,flame
flame bench merge engine.json base.json hstu.json
"""


def add(parts: Any) -> None:
    """Adds the benchmark."""
    parser = options.benchmark(parts, "engine", "the model alone", TEXT, EXAMPLES)
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER (engine.device; auto: cuda where there is one)")
    parser.add_argument(
        "--scenario",
        type=options.names,
        metavar="S,...",
        help="base, long; on a GPU mixed, hstu, dlrm, wide-512, wide-1024 too (all)",
    )
    parser.add_argument("--users", type=options.counts_list, metavar="N,...", help="users a launch (1; GPU: 1,8,32)")
    parser.add_argument(
        "--variants",
        type=options.names,
        metavar="NAME,...",
        help="CPU: backends (eager,compiled); GPU: rungs such as eager-dense, flex-graph, flame, flame-no-stack (all)",
    )
    parser.add_argument("--rounds", type=options.count, metavar="N", help="rounds that count (30; GPU: 60)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="bars as a PNG")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Runs the benchmark on the device that was asked for."""
    config = options.configure(args, engine__device=args.device)
    device = options.device_of(config.engine.device)
    return _run_on_cpu(args, config) if device == "cpu" else _run_on_gpu(args, config, device)


def _run_on_cpu(args: Namespace, config: Config) -> int:
    from flame.bench import engine, environment, plot, report
    from flame.bench.progress import bar
    from flame.ranker import launch_threads

    given = {"scenarios": args.scenario, "users": args.users, "variants": args.variants, "rounds": args.rounds}
    chosen = {name: value for name, value in given.items() if value is not None}
    bench = engine.EngineBench(**chosen, seed=args.seed)
    observed = environment.observe()
    environment.require_quiet(observed, strict=args.strict)
    with bar() as show:
        rows, facts = engine.run(bench, config, launch_threads(config), show)
    report.emit(report.document("engine", rows, observed, **facts), only_json=args.json, output=args.output)
    if args.plot:
        plot.bars(rows, args.plot)
    return 0


def _run_on_gpu(args: Namespace, config: Config, device: str) -> int:
    """What was measured is written to `--output` after every case: a long run may be cut off."""
    from flame.bench import environment, ladder_plot, report
    from flame.bench.ladder.run import Ladder, run
    from flame.bench.progress import bar

    given = {"scenarios": args.scenario, "users": args.users, "variants": args.variants, "rounds": args.rounds}
    chosen = {name: value for name, value in given.items() if value is not None}
    observed = environment.observe()
    environment.require_quiet(observed, strict=args.strict)

    def keep(rows: Any, facts: Any) -> None:
        if args.output:
            report.write(report.document("engine", rows, observed, **facts), args.output)

    with bar() as show:
        rows, facts = run(Ladder(**chosen, seed=args.seed), config.engine, device, show, keep)
    document = report.document("engine", rows, observed, **facts)
    report.emit(document, only_json=args.json, output=args.output)
    if args.plot:
        ladder_plot.ladder(document, args.plot)
    return 0
