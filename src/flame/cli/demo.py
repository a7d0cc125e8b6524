"""`flame demo`: the whole system on real data, once."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from flame.cli import options

TEXT = """\
Starts a server on a small model trained on MovieLens-100K, ranks real candidates for real users through HTTP, prints
titles, scores and the time of every stage, and ends.
"""

EXAMPLES = """
flame demo
flame demo --keep
"""


def add(commands: Any) -> None:
    """Adds the command."""
    parser = options.command(commands, "demo", "rank real movies for real users, end to end", TEXT, EXAMPLES)
    parser.add_argument("--keep", action="store_true", help="go on serving until Ctrl-C")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Runs the demonstration."""
    options.configure(args)

    from flame.examples.movielens import demo

    return demo.run(keep=args.keep)
