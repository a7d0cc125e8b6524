"""`flame serve`: a model behind HTTP and gRPC."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from flame.cli import options

if TYPE_CHECKING:
    from flame.server.lifecycle import Endpoints

TEXT = """\
Serves a model: Open Inference Protocol v2 over HTTP and gRPC, POST /v1/rank for people, GET /metrics, GET /v1/trace.
Prints where it listens and how to try it; ends cleanly on Ctrl-C or SIGTERM.
"""

EXAMPLES = """
flame serve MODEL_DIR
flame serve preset:flame-base --http-port 8080 --grpc-port 8081
flame serve MODEL_DIR --host 0.0.0.0 --config flame.toml --set orchestrator.executors=2
flame serve MODEL_DIR --store-path features/ --backend eager
flame serve MODEL_DIR --trace trace.json
"""


def add(commands: Any) -> None:
    """Adds the command."""
    parser = options.command(
        commands, "serve", "serve a model over HTTP and gRPC", TEXT, EXAMPLES, options.config_options()
    )
    parser.add_argument("model", metavar="MODEL_DIR", help=options.MODEL_HELP)
    parser.add_argument("--host", metavar="H", help="address to listen on (server.host)")
    parser.add_argument("--http-port", type=options.port, metavar="P", help="0: any free port (server.http_port)")
    parser.add_argument("--grpc-port", type=options.port, metavar="P", help="0: any free port (server.grpc_port)")
    parser.add_argument("--backend", metavar="NAME", help="how the model runs (engine.backend)")
    parser.add_argument("--store-path", metavar="DIR", help="feature store made by `flame features` (features.path)")
    parser.add_argument(
        "--trace", metavar="FILE", help="write a trace of the last requests when the server ends (server.trace)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON line with the real ports when ready; the rest to stderr"
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Loads the model and serves it until a signal comes."""
    config = options.configure(
        args,
        server__host=args.host,
        server__http_port=args.http_port,
        server__grpc_port=args.grpc_port,
        engine__backend=args.backend,
        features__path=args.store_path,
        server__trace=args.trace,
    )

    from flame.bench.progress import bar
    from flame.handover import shorten_interval
    from flame.ranker import Ranker
    from flame.server.lifecycle import serve
    from flame.server.traces import TraceFile

    if config.server.trace:
        TraceFile(config.server.trace)  # a mistake is told before the model is loaded
    shorten_interval()
    with bar() as show:
        ranker = Ranker.load(args.model, config, progress=show)
    if args.json:
        serve(ranker, config, ready=_tell, say=_to_stderr)
    else:
        serve(ranker, config)
    return 0


def _tell(endpoints: Endpoints) -> None:
    content = {"host": endpoints.host, "http_port": endpoints.http_port, "grpc_port": endpoints.grpc_port}
    print(json.dumps(content), flush=True)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
