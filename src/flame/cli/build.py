"""`flame build`: an engine built ahead of time, so that a server starts without building."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from flame.cli import options

if TYPE_CHECKING:
    from flame.engine.artifact import Validation
    from flame.engine.backends.base import Engine

TEXT = """\
Builds the engine of a model for this machine, measures what each profile costs, and compares it with the eager fp32
oracle on a few random requests (engine.validate). The artifact is kept under its fingerprint (weights, spec, precision,
backend, versions, machine); `flame serve` with the same settings finds it there.
"""

EXAMPLES = """
flame build MODEL_DIR
flame build preset:flame-base --backend compiled --output engine/
flame build MODEL_DIR --force --json
flame serve MODEL_DIR --set engine.artifact=engine/
"""

_VALIDATED = "validated   {requests} requests agree with {oracle}: rms {rms_relative:.1e}, isolation {isolation:.1e}"


def add(commands: Any) -> None:
    """Adds the command."""
    parser = options.command(
        commands, "build", "build a model's engine ahead of time", TEXT, EXAMPLES, options.config_options()
    )
    parser.add_argument("model", metavar="MODEL_DIR", help=options.MODEL_HELP)
    parser.add_argument("--backend", metavar="NAME", help="how the model shall run (engine.backend)")
    parser.add_argument("--precision", metavar="P", help="auto, fp32, bf16 or fp16 (engine.precision)")
    parser.add_argument("--output", metavar="DIR", help="folder of the artifact (engine.artifact; a cache folder)")
    parser.add_argument("--force", action="store_true", help="build anew what is there already")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Builds and prints fingerprint, validation, profiles and costs."""
    config = options.configure(
        args, engine__backend=args.backend, engine__precision=args.precision, engine__artifact=args.output
    )

    from flame.bench.progress import bar
    from flame.engine.build import build_artifact
    from flame.engine.package import load
    from flame.orchestrator.profiles import default_profiles
    from flame.ranker import launch_threads

    package = load(args.model, allow_code=config.engine.allow_code)
    profiles = default_profiles(package.spec, config.orchestrator)
    threads = launch_threads(config)
    with bar() as show:
        built = build_artifact(package, config.engine, profiles, threads=threads, force=args.force, progress=show)
    engine = built.engine
    content = {
        "model": engine.spec.name,
        "version": engine.spec.version,
        "backend": engine.backend,
        "device": engine.device,
        "precision": engine.precision,
        "threads": threads,
        "weights": package.fingerprint,
        "fingerprint": built.fingerprint,
        "artifact": str(built.folder),
        "validations": [_validation(one) for one in built.validations],
        "profiles": _profiles(engine),
    }
    engine.close()
    print(json.dumps(content) if args.json else _text(content))
    return 0


def _profiles(engine: Engine) -> list[dict[str, Any]]:
    """Profiles with their costs in milliseconds of a full launch."""
    return [
        profile._asdict()
        | {f"{kind}_ms": round(getattr(engine.costs[profile], kind), 4) for kind in ("rank", "encode", "score")}
        for profile in engine.profiles
    ]


def _validation(validation: Validation) -> dict[str, Any]:
    """What was compared, and the worst of what was found, in standard deviations of the oracle's scores."""
    report = validation.report
    return {
        "profiles": validation.profiles,
        **{name: report[name] for name in ("oracle", "seed", "requests", "pairs")},
        "rms_relative": max(task["rms_relative"] for task in report["tasks"]),
        "isolation": max(result["worst"] for result in report["isolation"]),
    }


def _text(content: dict[str, Any]) -> str:
    tables = ("validations", "profiles")
    lines = [f"{name:<12}{value}" for name, value in content.items() if name not in tables]
    lines += [_VALIDATED.format(**validation) for validation in content["validations"]]
    lines += ["", f"{'profile':<20}{'rank ms':>10}{'encode ms':>11}{'score ms':>10}"]
    for profile in content["profiles"]:
        shape = "{users} x {history} + {candidates}".format(**profile)
        lines.append("{:<20}{rank_ms:>10.3f}{encode_ms:>11.3f}{score_ms:>10.3f}".format(shape, **profile))
    return "\n".join(lines)
