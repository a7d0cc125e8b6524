"""`flame rank`: one request, in this process, without a server."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flame.cli import options
from flame.errors import ConfigError

if TYPE_CHECKING:
    from flame.records import History, RankRequest, RankResponse

TEXT = """\
Scores candidates for one user in this process and prints them best first.

The history comes from the model's feature store, or from a JSON file with three lists of one length, oldest event
first: {"items": [7, 8], "actions": [0, 1], "timestamps": [1700000000, 1700000060]}
"""

EXAMPLES = """
flame rank MODEL_DIR --user 42 --candidates 17,4,2003
flame rank preset:tiny-climber --user 42 --candidates 17,4,203 --history-file history.json --scenario 1 --json
"""


def add(commands: Any) -> None:
    """Adds the command."""
    parser = options.command(
        commands, "rank", "score candidates for one user, in this process", TEXT, EXAMPLES, options.config_options()
    )
    parser.add_argument("model", metavar="MODEL_DIR", help=options.MODEL_HELP)
    parser.add_argument("--user", type=int, required=True, metavar="ID")
    parser.add_argument("--candidates", type=options.ids, required=True, metavar="IDS", help="item ids: 17,4,2003")
    parser.add_argument("--history-file", type=Path, metavar="FILE", help="the user's events as JSON")
    parser.add_argument("--scenario", type=int, default=0, metavar="N", help="(0)")
    parser.add_argument("--backend", metavar="NAME", help="how the model runs (engine.backend)")
    parser.add_argument("--store-path", metavar="DIR", help="feature store made by `flame features` (features.path)")
    parser.add_argument("--json", action="store_true", help="print the response as one JSON line")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Ranks once and prints the scores."""
    config = options.configure(args, engine__backend=args.backend, features__path=args.store_path)
    request = _request(args)

    from flame.bench.progress import bar
    from flame.ranker import Ranker

    with bar() as show, Ranker.load(args.model, config, progress=show) as ranker:
        response = ranker.rank(request)
    args.candidates = args.candidates[: len(response.scores)]
    print(json.dumps(_content(args, response)) if args.json else _text(args, response))
    return 0


def _request(args: Namespace) -> RankRequest:
    import numpy as np

    from flame.records import RankRequest

    history = _history(args.history_file) if args.history_file else None
    return RankRequest(args.user, np.array(args.candidates, np.int64), history, args.scenario)


def _history(path: Path) -> History:
    """The history in a JSON file. Raises `ConfigError`."""
    import msgspec
    import numpy as np

    from flame.records import History

    try:
        content = msgspec.json.decode(options.read_file(path), type=dict[str, list[int]])
        return History(*(np.array(content[name], np.int64) for name in ("items", "actions", "timestamps")))
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError) as error:
        raise ConfigError(f"{path} is not a history in JSON: {error}") from error
    except KeyError as error:
        raise ConfigError(f"{path} has no list {error}; it needs items, actions and timestamps") from error


def _content(args: Namespace, response: RankResponse) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "user": args.user,
        "candidates": args.candidates,
        "scores": {task: response.scores[:, index].tolist() for index, task in enumerate(response.tasks)},
        "model": response.model,
        "version": response.version,
        "backend": response.backend,
        "features": asdict(response.counts),
        "times_us": asdict(response.times),
        "launches": response.launches,
        "history_reused": response.history_reused,
        "truncated": response.truncated,
    }


def _text(args: Namespace, response: RankResponse) -> str:
    """Candidates by their first score, best first, and how the answer came about."""
    width = max(10, *(len(task) for task in response.tasks))
    lines = ["  ".join([f"{'candidate':>12}", *(f"{task:>{width}}" for task in response.tasks)])]
    for index in (-response.scores[:, 0]).argsort(kind="stable"):
        scores = (f"{score:{width}.6f}" for score in response.scores[index])
        lines.append("  ".join([f"{args.candidates[index]:>12}", *scores]))
    counts, times = response.counts, response.times
    lines.append(
        f"{response.model} {response.version} ({response.backend}): {times.total / 1e3:.2f} ms, of which "
        f"features {times.features / 1e3:.2f}, queue {times.queue / 1e3:.2f}, compute {times.compute / 1e3:.2f}"
    )
    if response.truncated:
        print(f"truncated: only the first {len(response.scores)} candidates could be scored in time", file=sys.stderr)
    if counts.degraded:
        print(
            f"degraded: {counts.stale} stale, {counts.missing} missing, {counts.unknown} unknown feature rows"
            + (", unknown user" if counts.unknown_user else ""),
            file=sys.stderr,
        )
    return "\n".join(lines)
