"""Writes the module tables of docs/architecture.md from the first sentence of every module: `make docs`."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "flame"
PAGE = ROOT / "docs" / "architecture.md"
MARK = "## Module by module\n"
PARTS = {
    "features": "the Proximal Data Accelerator",
    "engine": "the Fused Kernel Engine",
    "orchestrator": "the Dynamic Stream Orchestrator",
    "server": "HTTP and gRPC",
    "bench": "measurements",
    "examples": "real data",
    "cli": "the command line",
}


def row(path: Path, base: Path) -> str:
    """One line of a table: the file and what its docstring says first; nothing for a file without one."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
    return f"| `{path.relative_to(base)}` | {first} |" if first else ""


def table(files: list[Path], base: Path) -> str:
    rows = [line for path in files if "_pb2" not in path.name and (line := row(path, base))]
    return "\n".join(["| module | what it is |", "|---|---|", *rows])


def tables() -> str:
    """The whole section below its heading."""
    parts = [f"\n### `flame`\n\n{table(sorted(SOURCE.glob('*.py')), SOURCE)}\n"]
    for name, meaning in PARTS.items():
        folder = SOURCE / name
        parts.append(f"\n### `{name}`: {meaning}\n\n{table(sorted(folder.rglob('*.py')), folder)}\n")
    return "".join(parts)


def page() -> str:
    """The page as it should be."""
    return PAGE.read_text().partition(MARK)[0] + MARK + tables()


if __name__ == "__main__":
    PAGE.write_text(page())
