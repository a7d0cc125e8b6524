"""The layer rule: who may import whom, read from the source and not from a run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "flame"
BASE = {"errors", "schema", "layout", "records", "metrics", "statistics", "log", "files", "jit", "handover", "__init__"}
CONFIG = BASE | {"config"}
ALLOWED = {
    "config": BASE,
    "features": CONFIG,
    "engine": CONFIG,
    "orchestrator": CONFIG | {"engine.spec", "engine.backends.base"},
    "in_flight": CONFIG | {"features", "engine.spec", "orchestrator"},
    "ranker": CONFIG | {"features", "engine", "orchestrator", "in_flight"},
    "server": CONFIG | {"features", "engine", "orchestrator", "ranker"},
    "bench": CONFIG | {"features", "engine", "orchestrator", "ranker", "server"},
    "examples": CONFIG | {"features", "engine", "orchestrator", "ranker", "server"},
    "cli": CONFIG | {"features", "engine", "orchestrator", "ranker", "server", "bench", "examples"},
    "__main__": {"cli"},
}
HEAVY = {"torch", "triton", "tensorrt", "ray", "grpc", "openvino", "numba", "pyarrow", "matplotlib"}
FILES = sorted(path for path in SOURCE.rglob("*.py") if "_pb2" not in path.name)


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(tree: ast.AST) -> set[str]:
    """Names below `flame` that a file imports, at any depth and also for annotations only."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "flame":
            found |= {f"flame.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name.removeprefix("flame.") for name in found if name.startswith("flame.")}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_only_layers_below_it(path: Path) -> None:
    own = module_of(path).split(".")[0]
    if own == "__init__":
        pytest.skip("the public face re-exports from everywhere")
    allowed = (ALLOWED.get(own) or BASE) | {own}
    for name in imports_of(ast.parse(path.read_text())):
        steps = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 2)]
        assert allowed & set(steps), f"{path.name} of {own} imports flame.{name}"


def test_there_is_no_import_cycle() -> None:
    modules = {module_of(path): imports_of(ast.parse(path.read_text())) for path in FILES}
    edges = {name: {known for known in used if known in modules and known != name} for name, used in modules.items()}
    done: set[str] = set()
    while ready := [name for name, used in edges.items() if name not in done and used <= done]:
        done.update(ready)
    assert not set(edges) - done, f"files in or behind a cycle: {sorted(set(edges) - done)}"


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if module_of(path).split(".")[0] in {"cli", *BASE, "config"}],
    ids=module_of,
)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    top = ast.parse(path.read_text()).body
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & HEAVY


@pytest.mark.parametrize("name", ["plan", "profiles", "timeline"])
def test_planning_is_free_of_torch(name: str) -> None:
    path = SOURCE / "orchestrator" / f"{name}.py"
    names = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not names & HEAVY
