"""`flame bench`: measurements of the parts, each ending with a table and one JSON document."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from flame.cli import bench_engine, bench_orchestrator, bench_results, options

TEXT = """\
Measures a part of FLAME on this machine. Every benchmark prints a table and, as the last line of standard output, one
JSON document: {"bench": ..., "machine": {...}, "rows": [...]}.
"""

EXAMPLES = """
flame bench engine --variants eager,compiled,openvino --output engine.json
flame bench orchestrator --quick
flame bench features
flame bench path --model preset:flame-base
flame bench table benchmarks/results/engine-h100.json --into README.md
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
    bench_engine.add(parts)
    bench_orchestrator.add(parts)
    _add_features(parts)
    _add_path(parts)
    bench_results.add(parts)


def _add_features(parts: Any) -> None:
    parser = options.benchmark(parts, "features", "the feature side alone", FEATURES_TEXT, FEATURES_EXAMPLES)
    parser.add_argument("--rows", type=options.count, default=1_000_000, metavar="N", help="rows cached (1000000)")
    parser.add_argument("--ids", type=options.count, default=1024, metavar="N", help="ids a look-up (1024)")
    parser.add_argument("--repeats", type=options.count, default=2000, metavar="N", help="look-ups (2000)")
    parser.set_defaults(run=run_features)


def _add_path(parts: Any) -> None:
    parser = options.benchmark(parts, "path", "everything but the model", PATH_TEXT, PATH_EXAMPLES)
    parser.add_argument("--model", default="preset:flame-base", metavar="MODEL_DIR", help="(preset:flame-base)")
    parser.add_argument("--history", type=options.count, metavar="N", help="events of a request (the model's limit)")
    parser.add_argument("--candidates", type=options.count, default=128, metavar="N", help="of a request (128)")
    parser.add_argument("--requests", type=options.count, default=200, metavar="N", help="per protocol (200)")
    parser.set_defaults(run=run_path)


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
