"""`flame` as a real process, and, where the process is not the point, in this one: imports are what takes time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flame.cli.main import main

Flame = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment without settings of its own, with one artifact cache for all tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLAME_")}
    return kept | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run_flame(environ: dict[str, str], tmp_path: Path) -> Flame:
    """Runs `flame` with the given words in an empty folder and returns what it said."""

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flame", *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=150, check=False, env=environ | more, cwd=tmp_path
        )

    return run


@pytest.fixture(autouse=True)
def own_settings(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same environment and folder for commands in this process, and the log as it was before."""
    for name in os.environ:
        if name.startswith("FLAME_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", environ["XDG_CACHE_HOME"])
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("flame")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def flame_here(capsys: pytest.CaptureFixture[str]) -> Flame:
    """Runs `flame` in this process; its exit code and what it said come back as from a process."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        out, error = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, out, error)

    return run
