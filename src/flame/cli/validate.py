"""`flame validate`: a backend compared with the oracle."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from flame.cli import options

TEXT = """\
Runs random requests through a backend and through the eager fp32 oracle and compares them: error of every task, rank
agreement, and candidate isolation (subset, permutation, split, padding, other users, other profile, encode + score,
and for models that are appendable, append).
Exits with 1 when something is out of tolerance.
"""

EXAMPLES = """
flame validate MODEL_DIR
flame validate preset:tiny-climber --backend compiled --requests 64 --seed 1
flame validate MODEL_DIR --backend openvino --json
"""


def add(commands: Any) -> None:
    """Adds the command."""
    parser = options.command(
        commands, "validate", "compare a backend with the oracle", TEXT, EXAMPLES, options.config_options()
    )
    parser.add_argument("model", metavar="MODEL_DIR", help=options.MODEL_HELP)
    parser.add_argument("--backend", metavar="NAME", help="what to validate (engine.backend)")
    parser.add_argument("--precision", metavar="P", help="auto, fp32, bf16 or fp16 (engine.precision)")
    parser.add_argument("--requests", type=options.count, default=32, metavar="N", help="random requests (32)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON line")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Validates and prints the report; 1 when it fails."""
    config = options.configure(args, engine__backend=args.backend, engine__precision=args.precision)

    from msgspec.structs import replace

    from flame.bench.progress import bar
    from flame.engine.backends.eager import EagerEngine
    from flame.engine.build import build
    from flame.engine.package import load
    from flame.engine.validate import validate
    from flame.orchestrator.profiles import default_profiles
    from flame.ranker import launch_threads

    # An engine that would not be let into service is what this command is for.
    settings = replace(config.engine, validate="off")
    package = load(args.model, allow_code=settings.allow_code)
    profiles = default_profiles(package.spec, config.orchestrator)
    with bar() as show:
        engine = build(package, settings, profiles, threads=launch_threads(config), progress=show)
        oracle = EagerEngine(package, profiles, engine.device)
        report = validate(
            engine,
            oracle,
            requests=args.requests,
            seed=args.seed,
            progress=lambda done, total: show("validating", done, total),
        )
    engine.close()
    oracle.close()
    print(json.dumps(report.to_dict()) if args.json else report.render())
    return 0 if report.passed else 1
