"""Help: quick, complete, and with examples that work."""

from __future__ import annotations

import argparse
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import flame
from flame.cli.main import main, parser

SCRIPT = Path(sys.executable).with_name("flame")
HEAVY = {"torch", "numpy", "numba", "grpc", "pyarrow", "openvino", "matplotlib", "rich", "uvicorn", "asyncio", "psutil"}


def commands(root: argparse.ArgumentParser, *words: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its parser, parts of commands included."""
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, part in action.choices.items():
                yield " ".join([*words, name]), part
                yield from commands(part, *words, name)


COMMANDS = dict(commands(parser()))


def examples(text: str) -> list[str]:
    lines = text.partition("examples:\n")[2].splitlines()
    return [line.strip() for line in lines if line.strip()]


def test_all_commands_are_there() -> None:
    top = [name for name in COMMANDS if " " not in name]
    assert top == ["serve", "rank", "build", "validate", "bench", "load", "features", "demo"]
    assert {"bench engine", "bench features", "bench path", "features import", "features info"} <= COMMANDS.keys()


@pytest.mark.parametrize("words", ["--help", "serve --help", "bench engine --help", "--version"])
def test_help_imports_nothing_heavy(words: str) -> None:
    code = (
        "import sys\nfrom flame.cli.main import main\n"
        f"try: main({words.split()!r})\nexcept SystemExit as end: assert end.code == 0\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_has_examples_that_parse(command: str) -> None:
    shown = io.StringIO()
    with redirect_stdout(shown), pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    found = examples(shown.getvalue())
    assert found
    for line in found:
        program, *words = shlex.split(line)
        assert program == "flame"
        if "COMMAND" not in words:
            assert callable(parser().parse_args(words).run)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_show_their_own_command(command: str) -> None:
    own = [line for line in examples(COMMANDS[command].format_help()) if line.startswith(f"flame {command}")]
    assert own


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    for action in COMMANDS[command]._actions:
        if not isinstance(action, argparse._SubParsersAction) and action.dest not in ("user", "help"):
            assert action.help, action.dest


def test_the_help_of_the_program_lists_every_command_and_the_exit_codes() -> None:
    text = parser().format_help()
    for name in COMMANDS:
        if " " not in name:
            assert re.search(rf"^    {name} +\S", text, re.MULTILINE)
    assert "exit codes: 0 done, 1 failed, 2 wrong command line or setting, 130" in text


@pytest.mark.parametrize("command", [[sys.executable, "-m", "flame"], [str(SCRIPT)]], ids=["module", "script"])
def test_the_version_is_told(command: list[str]) -> None:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"flame {flame.__version__}\n"
