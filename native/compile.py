"""Compiles the modules that every request passes through into C extensions: `python native/compile.py FOLDER`.

mypyc makes C of typed Python; the source is the same, and runs as it is where it was not compiled. Needs mypy 2.4,
which brings mypyc, setuptools and a C compiler.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"

MODULES = (
    "admission",
    "attempt",
    "batching",
    "books",
    "company",
    "cover",
    "crowd",
    "device",
    "forecast",
    "job",
    "lane",
    "learning",
    "placement",
    "plan",
    "policies",
    "pool",
    "post",
    "prefixes",
    "profiles",
    "queue",
    "recurrence",
    "reuse",
    "rounds",
    "schedule",
    "slots",
    "states",
    "ticket",
    "timeline",
)
"""Those of `flame.orchestrator` that every request or launch passes through. `executor` is not among them: tests and
tools hold weak references to executors, which compiled objects do not have."""

# Of other packages only the types of numpy and msgspec count, and to read those of torch takes minutes.
_TYPES = """\
[mypy]
follow_imports = skip
ignore_missing_imports = true
[mypy-flame.*,numpy.*,msgspec.*]
follow_imports = silent
"""


def compile_into(folder: Path, level: int = 3) -> None:
    """Leaves the extensions in `folder`, as they lie beside the package `flame` and in it; ends the process on errors.

    `level` is the C compiler's optimization. Works in a copy: the source stays as it is. Changes the working directory.
    """
    folder = folder.resolve()
    with tempfile.TemporaryDirectory(prefix="flame-compile-") as place:
        shutil.copytree(SOURCE / "flame", Path(place, "flame"), ignore=shutil.ignore_patterns("__pycache__"))
        Path(place, "mypy.ini").write_text(_TYPES, encoding="utf-8")
        os.chdir(place)
        try:
            _build(folder, level)
        finally:
            os.chdir(folder)


def _build(folder: Path, level: int) -> None:
    from setuptools import setup  # before mypyc, which looks for it

    from mypyc.build import mypycify  # isort: skip

    files = [f"flame/orchestrator/{module}.py" for module in MODULES]
    options = ["--config-file=mypy.ini", "--cache-dir=types"]
    extensions = mypycify([*options, *files], opt_level=str(level), debug_level="0", group_name="flame")
    words = ["--quiet", "build_ext", f"--build-lib={folder}", "--build-temp=objects"]
    setup(name="flame-compiled", packages=[], ext_modules=extensions, script_args=words)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Compiles FLAME's request path.")
    parser.add_argument("folder", type=Path, help="where the extensions go; made if it is not there")
    parser.add_argument("--level", type=int, default=3, help="optimization of the C compiler (default 3)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    compile_into(args.folder, args.level)


if __name__ == "__main__":
    sys.exit(main())
