"""Options that several commands share, and how they become a `Config`."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flame import log
from flame.config import Config, load
from flame.errors import ConfigError

MODEL_HELP = "model folder (model.toml, weights.safetensors), or preset:NAME for random weights"


def command(
    commands: Any, name: str, summary: str, text: str, examples: str, *parents: ArgumentParser
) -> ArgumentParser:
    """Adds a command to `commands` with the help that every command has: summary, text, options, examples."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    parser: ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"examples:\n{lines}",
        parents=[*parents, _log_options()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def benchmark(parts: Any, name: str, summary: str, text: str, examples: str) -> ArgumentParser:
    """Adds a benchmark to `parts`, with the options that every benchmark has."""
    parser = command(parts, name, summary, text, examples, config_options())
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    add_report(parser)
    return parser


def config_options() -> ArgumentParser:
    """`--config` and `--set`, for commands that load a model or a server."""
    parser = ArgumentParser(add_help=False)
    group = parser.add_argument_group("settings", "see docs/configuration.md; the command line wins over all else")
    group.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML, one table per section")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="SECTION.FIELD=VALUE",
        help="one setting; repeatable",
    )
    return parser


def _log_options() -> ArgumentParser:
    parser = ArgumentParser(add_help=False)
    group = parser.add_argument_group("logging")
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="default: info")
    group.add_argument("--log-format", choices=("text", "json"), help="default: text")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def configure(args: Namespace, *, defaults: Mapping[str, Any] | None = None, **settings: Any) -> Config:
    """The configuration of a command, with logging set up as it says.

    `settings` maps `section__field` to the value of the option of its own that the command has, None where it was
    not given. Such an option wins over `--set`. `defaults` maps `section.field` to what the command takes where
    nobody says anything. Raises `ConfigError`.
    """
    own = {name.replace("__", "."): value for name, value in settings.items() if value is not None}
    logging = {"log.level": args.log_level, "log.format": args.log_format}
    own |= {name: value for name, value in logging.items() if value is not None}
    chosen = dict(getattr(args, "set", []))
    config = load(getattr(args, "config", None), overrides=chosen | own, defaults=defaults)
    log.configure(config.log.level, config.log.format)
    return config


def add_report(parser: ArgumentParser) -> None:
    """Options of every benchmark: how the report is given, and whether a busy machine is accepted."""
    group = parser.add_argument_group("report")
    group.add_argument("--json", action="store_true", help="print the JSON document alone, without the table")
    group.add_argument("--output", type=Path, metavar="FILE", help="write the JSON document to a file as well")
    group.add_argument("--strict", action="store_true", help="refuse to measure on a machine that does other work")


def counts(text: str | None, *, least: int = 1, words: tuple[str, ...] = ()) -> Any:
    """A distribution of counts from text; None and one of `words` stay as they are. Raises `ConfigError`."""
    from flame.bench.distributions import parse_counts

    return text if text is None or text in words else parse_counts(text, least)


def device_of(wanted: str) -> str:
    """The device that a benchmark of the engine runs on. Raises `ConfigError` for a kind that there is none for."""
    if wanted != "auto":
        if wanted.partition(":")[0] not in ("cpu", "cuda"):
            raise ConfigError(f"--device is {wanted!r}; the engine is measured on cpu, cuda or cuda:NUMBER")
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def forwarded(args: Namespace) -> list[str]:
    """`--config` and `--set` as they were given, for another `flame` process."""
    words = ["--config", str(args.config)] if args.config else []
    return words + [word for name, value in args.set for word in ("--set", f"{name}={value}")]


def ids(text: str) -> list[int]:
    """Item ids from `1,2,3`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a list of ids such as 17,4,2003") from None


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def counts_list(text: str) -> list[int]:
    """Whole numbers of at least 1 from `1,8,32`."""
    return [count(part) for part in text.split(",")]


def amount(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def names(text: str) -> list[str]:
    """Words from `a,b,c`."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise ArgumentTypeError(f"{text!r} is not a list such as a,b,c")
    return found


def read_file(path: Path) -> bytes:
    """The bytes of a file the user named; raises `ConfigError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or "." not in name:
        raise ArgumentTypeError(f"{text!r} is not SECTION.FIELD=VALUE, such as features.cache=async")
    return name.strip(), value


def port(text: str) -> int:
    """A port number; 0 stands for any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"{text!r} is not a port between 0 and 65535")
    return int(text)


def output_folder(given: Path | None, model: Path | None, name: str) -> Path:
    """`given`, else the folder `name` in the model's folder. Raises `ConfigError` for a preset, which has none."""
    if given is not None:
        return given
    if model is None:
        raise ConfigError("a preset has no folder to write into; name one with --output")
    return model / name
