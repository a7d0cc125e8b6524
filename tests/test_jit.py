"""Kernels are found wherever a program runs, and are never those of another source."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flame import jit

_USE = """
from pathlib import Path
import numpy as np
from flame.features import kernels
from flame.features.mapping import table_rows
from flame.jit import code_folder
from flame.schema import ItemTable
print(code_folder(Path(kernels.__file__).parent), table_rows(np.array([1, 99]), ItemTable(50, 4)).tolist())
"""


def run(**environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", _USE],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    folder, _, rows = result.stdout.partition(" ")
    assert rows.strip() == "[1, 0]"
    return folder


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_compiled_code_is_kept_where_the_user_says(tmp_path: Path, variable: str) -> None:
    folder = Path(run(**{variable: str(tmp_path)}))
    assert folder.is_relative_to(tmp_path)
    assert list(folder.rglob("*.nbi"))


def test_a_home_that_cannot_hold_code_is_no_obstacle() -> None:
    run(HOME="/dev/null")
    assert run(HOME="~") == "", "a user without a home"


def test_code_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    """A function without a source file has no place on disk, as any function where no folder can be written."""
    names: dict[str, Any] = {}
    exec("def double(value):\n    return 2 * value", names)
    compiled = jit.kernel(names["double"])
    assert compiled(21) == 42
    assert compiled.nopython_signatures
