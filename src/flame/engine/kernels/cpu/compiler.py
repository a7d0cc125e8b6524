"""From the C++ sources beside this file to a shared library for one model.

The sizes of the model become constants, so the compiler unrolls and keeps sums in registers; the processor of this
machine is the target. Compiling takes seconds and needs a C++20 compiler, which is asked for only here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
"""No contraction and no fast-math: a row's result must not depend on how the compiler happened to vectorise it."""

Constant = bool | int | Sequence[int]


class CompileError(Exception):
    """There is no compiler, or it refused; the message holds what it said."""


def find_compiler() -> tuple[str, ...]:
    """The C++ compiler: `$CXX`, or the first of c++, g++ and clang++. Raises `CompileError`.

    A command of several words where `$CXX` is one, as in `ccache g++`.
    """
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return (path,)
    words = asked.split() if asked else []
    if words and shutil.which(words[0]):
        return tuple(words)
    raise CompileError(
        f"the C++ compiler $CXX={asked!r} does not exist" if asked else "there is no C++ compiler (c++, g++, clang++)"
    )


def compiler_version(command: Sequence[str]) -> str:
    """The first line of what the compiler says of itself, and the words that its command adds."""
    answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return " ".join([answer.stdout.partition("\n")[0].strip(), *command[1:]])


def config_header(constants: Mapping[str, Constant]) -> str:
    """The sizes of a model as a C++ header; a sequence becomes an array, which in C++ cannot be empty."""
    lines = [_line(name, value) for name, value in constants.items()]
    return "\n".join(["#pragma once", "namespace flame::config {", *lines, "}", ""])


def compile_library(
    source: str, constants: Mapping[str, Constant], library: Path, extra_flags: Sequence[str] = ()
) -> None:
    """Compiles `source`, one of the files in `SOURCES`, with these constants into `library`. Raises `CompileError`."""
    with tempfile.TemporaryDirectory(prefix="flame-build-") as folder:
        Path(folder, "config.h").write_text(config_header(constants), encoding="utf-8")
        options = [*FLAGS, *extra_flags, f"-I{folder}", f"-I{SOURCES}"]
        command = [*find_compiler(), *options, str(SOURCES / source), "-o", str(library)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise CompileError(f"{' '.join(command)} failed with status {answer.returncode}:\n{answer.stderr[-4000:]}")


def _line(name: str, value: Constant) -> str:
    if isinstance(value, bool):
        return f"constexpr bool {name} = {str(value).lower()};"
    if isinstance(value, int):
        return f"constexpr int {name} = {value};"
    values = ", ".join(str(int(entry)) for entry in value) or "0"
    return f"constexpr int {name}[] = {{{values}}};"
