"""The compiled request path: it builds, and keeps the promises that the same source keeps as Python."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flame

ROOT = Path(__file__).parents[1]
TESTS = (
    "admission",
    "company",
    "cover",
    "ending",
    "leaving",
    "learning",
    "plan",
    "pool",
    "profiles",
    "queue",
    "reuse",
    "rounds",
    "schedule",
    "states",
    "timeline",
)


def missing() -> list[str]:
    """What compiling needs and this machine has not."""
    absent = [name for name in ("mypyc", "setuptools") if importlib.util.find_spec(name) is None]
    return absent if shutil.which("cc") else [*absent, "a C compiler"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(missing()), reason=f"compiling needs {' and '.join(missing())}")
def test_the_compiled_request_path_passes_the_tests_of_the_source(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src" / "flame", tmp_path / "flame", ignore=shutil.ignore_patterns("__pycache__"))
    run([str(ROOT / "native" / "compile.py"), str(tmp_path), "--level", "0"], tmp_path)
    assert run(["-m", "flame", "--version"], tmp_path) == f"flame {flame.__version__} (compiled)\n"
    files = [f"tests/orchestrator/test_{name}.py" for name in TESTS]
    run(["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-profile=ci", *files], tmp_path)


def run(words: list[str], place: Path) -> str:
    """Output of this Python, which imports FLAME from `place`."""
    environment = os.environ | {"PYTHONPATH": str(place)}
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not ran.returncode, ran.stdout + ran.stderr
    return ran.stdout
