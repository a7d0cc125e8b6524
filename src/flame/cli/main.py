"""The `flame` command: reads the command line, runs one command, and says how it went by the exit code.

0: done. 1: the thing failed, and standard error says why. 2: the command line or a setting is wrong.
130: stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import flame
from flame.cli import bench, build, demo, features, load, rank, serve, validate
from flame.errors import ConfigError, FlameError

DONE, FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141

EPILOG = """\
MODEL_DIR is a model folder (model.toml, weights.safetensors) or preset:NAME for random weights.
exit codes: 0 done, 1 failed, 2 wrong command line or setting, 130 stopped by Ctrl-C

examples:
  flame demo
  flame serve preset:flame-base --http-port 8000
  flame COMMAND --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `flame` with the given arguments (those of the process by default) and returns the exit code."""
    args = parser().parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except FlameError as error:
        if args.debug:
            raise
        print(f"flame {args.command}: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    root = argparse.ArgumentParser(
        prog="flame",
        description="Online serving for generative-recommendation rankers: a user, a few hundred candidates, "
        "a score for each.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    how = " (compiled)" if flame.compiled() else ""
    root.add_argument("--version", action="version", version=f"flame {flame.__version__}{how}")
    commands = root.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (serve, rank, build, validate, bench, load, features, demo):
        module.add(commands)
    return root
