"""The compiler's stand-in: equal sources are compiled once, wherever they lie, and nothing else is taken for equal."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import compile_once

COMPILER = """#!/bin/sh
echo call >> "$(dirname "$0")/calls"
for word in "$@"; do case $word in *.cpp) source=$word ;; esac; out=$word; done
grep -q refuse "$source" && exit 3
cat "$source" "$(dirname "$source")/size.h" > "$out"
"""


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """Joins a source and its header, and notes each call."""
    path = tmp_path / "compiler"
    path.write_text(COMPILER)
    path.chmod(0o755)
    (tmp_path / "kept").mkdir()
    return path


def compiled(compiler: Path, folder: str, source: str, header: str, *options: str) -> tuple[int, str]:
    """The exit status, and what was compiled in a folder of this name."""
    place = compiler.parent / folder
    place.mkdir()
    (place / "a.cpp").write_text(source)
    (place / "size.h").write_text(header)
    library = place / "a.so"
    environment = {compile_once.COMPILER: str(compiler), compile_once.FOLDER: str(compiler.parent / "kept")}
    command = [compile_once.__file__, *options, f"-I{place}", str(place / "a.cpp"), "-o", str(library)]
    status = subprocess.run(command, env=os.environ | environment).returncode
    return status, library.read_text() if library.exists() else ""


def calls(compiler: Path) -> int:
    return len((compiler.parent / "calls").read_text().splitlines())


def test_equal_sources_are_compiled_once(compiler: Path) -> None:
    assert compiled(compiler, "one", "source", "8") == compiled(compiler, "two", "source", "8") == (0, "source8")
    assert calls(compiler) == 1


def test_other_sources_headers_and_options_are_compiled_anew(compiler: Path) -> None:
    assert compiled(compiler, "one", "source", "8") == (0, "source8")
    assert compiled(compiler, "two", "source", "9") == (0, "source9")
    assert compiled(compiler, "three", "other", "8") == (0, "other8")
    assert compiled(compiler, "four", "source", "8", "-DSIZE=1") == (0, "source8")
    assert calls(compiler) == 4


def test_a_refusal_is_told_and_not_kept(compiler: Path) -> None:
    assert compiled(compiler, "one", "refuse", "8") == compiled(compiler, "two", "refuse", "8") == (3, "")
    assert calls(compiler) == 2
