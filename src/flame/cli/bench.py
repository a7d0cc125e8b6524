"""`flame bench`: measurements of the parts, each ending with a table and one JSON document."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from flame.cli import options

TEXT = """\
Measures a part of FLAME on this machine. Every benchmark prints a table and, as the last line of standard output, one
JSON document: {"bench": ..., "machine": {...}, "rows": [...]}.
"""

EXAMPLES = """
flame bench engine --variants eager,compiled,openvino --output engine.json
flame bench features
flame bench path --model preset:flame-base
"""

ENGINE_TEXT = """\
Times the model alone: every backend on the same packed input, in interleaved rounds, beside a large matrix product on
the same threads. A backend that differs from the oracle gets no times.
"""

ENGINE_EXAMPLES = """
flame bench engine
flame bench engine --scenario long --variants eager,compiled,openvino --rounds 50 --output engine.json --plot engine.png
flame bench engine --scenario base --users 1,4 --json
"""

FEATURES_TEXT = """\
Times the feature side alone: look-ups in a full item cache, and gathering a whole request into its packed buffer.
"""

FEATURES_EXAMPLES = """
flame bench features
flame bench features --rows 1000000 --ids 1024 --repeats 2000 --output features.json
"""

PATH_TEXT = """\
Times everything but the model: starts a server, sends requests one after the other through HTTP with binary tensors,
gRPC and JSON, and takes away what the model itself needs, in time and in CPU. Marks: at most 1 ms and 15 %.
"""

PATH_EXAMPLES = """
flame bench path
flame bench path --model preset:flame-long --history 1024 --candidates 512 --requests 300 --output path.json
"""


def add(commands: Any) -> None:
    """Adds the command and one part for each benchmark."""
    parser = options.command(commands, "bench", "measure a part of FLAME", TEXT, EXAMPLES)
    parts = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    _add_engine(parts)
    _add_features(parts)
    _add_path(parts)


def _part(parts: Any, name: str, summary: str, text: str, examples: str) -> ArgumentParser:
    parser = options.command(parts, name, summary, text, examples, options.config_options())
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    options.add_report(parser)
    return parser


def _add_engine(parts: Any) -> None:
    parser = _part(parts, "engine", "the model alone", ENGINE_TEXT, ENGINE_EXAMPLES)
    parser.add_argument(
        "--scenario", type=options.names, default=["base", "long"], metavar="S,...", help="base, long (both)"
    )
    parser.add_argument("--users", type=options.counts_list, default=[1], metavar="N,...", help="users a launch (1)")
    parser.add_argument(
        "--variants",
        type=options.names,
        default=["eager", "compiled"],
        metavar="NAME,...",
        help="backends (eager,compiled)",
    )
    parser.add_argument("--rounds", type=options.count, default=30, metavar="N", help="rounds that count (30)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="bars of the medians as a PNG")
    parser.set_defaults(run=run_engine)


def _add_features(parts: Any) -> None:
    parser = _part(parts, "features", "the feature side alone", FEATURES_TEXT, FEATURES_EXAMPLES)
    parser.add_argument("--rows", type=options.count, default=1_000_000, metavar="N", help="rows cached (1000000)")
    parser.add_argument("--ids", type=options.count, default=1024, metavar="N", help="ids a look-up (1024)")
    parser.add_argument("--repeats", type=options.count, default=2000, metavar="N", help="look-ups (2000)")
    parser.set_defaults(run=run_features)


def _add_path(parts: Any) -> None:
    parser = _part(parts, "path", "everything but the model", PATH_TEXT, PATH_EXAMPLES)
    parser.add_argument("--model", default="preset:flame-base", metavar="MODEL_DIR", help="(preset:flame-base)")
    parser.add_argument("--history", type=options.count, metavar="N", help="events of a request (the model's limit)")
    parser.add_argument("--candidates", type=options.count, default=128, metavar="N", help="of a request (128)")
    parser.add_argument("--requests", type=options.count, default=200, metavar="N", help="per protocol (200)")
    parser.set_defaults(run=run_path)


def run_engine(args: Namespace) -> int:
    """Runs the benchmark of the engine."""
    config = options.configure(args)

    from flame.bench import engine, environment, plot, report
    from flame.bench.progress import bar
    from flame.ranker import launch_threads

    bench = engine.EngineBench(args.scenario, args.users, args.variants, args.rounds, seed=args.seed)
    observed = environment.observe()
    environment.require_quiet(observed, strict=args.strict)
    with bar() as show:
        rows, facts = engine.run(bench, config, launch_threads(config), show)
    report.emit(report.document("engine", rows, observed, **facts), only_json=args.json, output=args.output)
    if args.plot:
        plot.bars(rows, args.plot)
    return 0


def run_features(args: Namespace) -> int:
    """Runs the benchmark of the features."""
    config = options.configure(args)

    from flame.bench import environment, features, report
    from flame.bench.progress import bar

    bench = features.FeaturesBench(args.rows, args.ids, args.repeats, seed=args.seed)
    observed = environment.observe()
    environment.require_quiet(observed, strict=args.strict)
    with bar() as show:
        rows, facts = features.run(bench, config, show)
    report.emit(report.document("features", rows, observed, **facts), only_json=args.json, output=args.output)
    return 0


def run_path(args: Namespace) -> int:
    """Runs the benchmark of the path around the model."""
    config = options.configure(args)

    from flame.bench import environment, path, report
    from flame.bench.progress import bar

    bench = path.PathBench(args.model, args.history, args.candidates, args.requests, seed=args.seed)
    observed = environment.observe()
    environment.require_quiet(observed, strict=args.strict)
    with bar() as show:
        rows, facts = path.run(bench, config, options.forwarded(args), show)
    report.emit(report.document("path", rows, observed, **facts), only_json=args.json, output=args.output)
    return 0
