"""Compiling: what the compiler is told, and what it says when it refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flame.engine.kernels.cpu.compiler import (
    CompileError,
    compile_library,
    compiler_version,
    config_header,
    find_compiler,
)


def test_the_header_holds_every_kind_of_constant(tmp_path: Path) -> None:
    header = config_header({"DIM": 96, "CAUSAL": True, "OFFSETS": [0, 7], "NONE": []})
    (tmp_path / "config.h").write_text(header)
    check = (
        '#include "config.h"\nusing namespace flame::config;\nstatic_assert(DIM == 96 && CAUSAL && OFFSETS[1] == 7);'
    )
    (tmp_path / "check.cpp").write_text(check)
    command = [*find_compiler(), "-std=c++20", "-fsyntax-only", str(tmp_path / "check.cpp")]
    subprocess.run(command, check=True, capture_output=True)


def test_a_refusal_holds_what_the_compiler_said(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"failed with status 1:\n(.|\n)*DIM"):
        compile_library("climber.cpp", {"LAYERS": 1}, tmp_path / "kernels.so")
    assert not (tmp_path / "kernels.so").exists()


def test_a_compiler_that_cannot_run_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(CompileError, match="status 3:\nout of memory"):
        compile_library("climber.cpp", {}, tmp_path / "kernels.so")


def test_a_compiler_may_be_a_command_of_several_words(monkeypatch: pytest.MonkeyPatch) -> None:
    (plain,) = find_compiler()
    monkeypatch.setenv("CXX", f"env {plain} -m64")
    assert find_compiler() == ("env", plain, "-m64")
    assert compiler_version(find_compiler()) == f"{compiler_version([plain])} {plain} -m64"
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(CompileError, match="'no-such-compiler -m64' does not exist"):
        find_compiler()


def test_a_path_with_a_blank_is_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "my compiler"
    compiler.write_text("#!/bin/sh\necho mine 1.0\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert compiler_version(find_compiler()) == "mine 1.0"
