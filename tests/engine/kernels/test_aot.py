"""Every GPU kernel compiles for every architecture without spilling registers, and its shared memory is there.

Compiled in processes of their own, since this one may interpret. What is compiled stands in `compile_all.py`.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import flame.engine.kernels
from flame.engine.kernels.resources import shared_limit

CHILD = Path(__file__).with_name("compile_all.py")
SOURCES = Path(flame.engine.kernels.__file__).parent
CAPABILITIES = (80, 89, 90, 100, 120)

Compile = Callable[..., list[dict[str, Any]]]


class Allowed(NamedTuple):
    """A kernel that may take more than none of the stack, in bytes per thread, and why."""

    operation: str
    function: str
    capabilities: tuple[int, ...]
    stack: int
    reason: str


ALLOWED: tuple[Allowed, ...] = ()


def excesses(found: list[dict[str, Any]], capability: int) -> list[str]:
    """One line for each kernel that does not compile, spills or does not fit."""
    lines = []
    for one in found:
        name = f"{one['operation']}/{one['name']} ({one['label']}) on sm_{capability}"
        if "error" in one:
            lines.append(f"{name} does not compile: {one['error']}")
            continue
        if one["registers"] > 255 or one["stack"] > stack_limit(one, capability):
            lines.append(f"{name}: {one['registers']} registers and {one['stack']} bytes of stack")
        if one["shared"] > shared_limit(capability):
            lines.append(f"{name}: {one['shared']} bytes of shared memory, {shared_limit(capability)} are there")
    return lines


def stack_limit(one: dict[str, Any], capability: int) -> int:
    key = (one["operation"], one["function"])
    return max((row.stack for row in ALLOWED if key == row[:2] and capability in row.capabilities), default=0)


def entries(path: Path) -> set[str]:
    """Functions of a Triton source that no other of its functions calls: those that are launched."""
    tree = ast.parse(path.read_text())
    functions = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and "jit" in map(decorator, node.decorator_list)
    ]
    called = {name.id for function in functions for name in ast.walk(function) if isinstance(name, ast.Name)}
    return {function.name for function in functions} - called


def decorator(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2].partition("(")[0]


@pytest.fixture
def compile_kernels(tmp_path: Path) -> Compile:
    """Runs the child and gives its lines."""

    def run(*arguments: object) -> list[dict[str, Any]]:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        command = [sys.executable, str(CHILD), *map(str, arguments)]
        done = subprocess.run(
            command,
            env=environment | {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


KERNELS = """
import triton
import triton.language as tl

from flame.engine.kernels.kernel import TritonKernel


@triton.jit
def product(a, b, c, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    for start in range(0, depth, K):
        left = tl.load(a + m[:, None] * depth + (start + k)[None, :])
        total += tl.dot(left, tl.load(b + (start + k)[:, None] * N + n[None, :]))
    tl.store(c + m[:, None] * N + n[None, :], total)


def kernel(name, m, n, k, stages=2, warps=4, **other):
    signature = {"a": "*bf16", "b": "*bf16", "c": "*fp32", "depth": "i32"} | other
    sizes = {"M": m, "N": n, "K": k}
    return TritonKernel(name, product, signature, sizes, warps, stages, multiples_of_16=frozenset({"depth"}))


def kernels():
    yield kernel("fits", 64, 64, 64)
    yield kernel("fits again", 64, 64, 64)
    yield kernel("spills", 128, 256, 64)
    yield kernel("too large", 128, 128, 128, stages=5, warps=8)
    yield kernel("wrong", 64, 64, 64, b="*fp32")
"""


def test_what_does_not_compile_or_fit_is_told(compile_kernels: Compile, tmp_path: Path) -> None:
    file = tmp_path / "several.py"
    file.write_text(KERNELS)
    found = compile_kernels(80, file)
    assert [one["name"] for one in found] == ["fits", "spills", "too large", "wrong"]
    spilled, large, wrong = excesses(found, 80)
    assert "spills (several) on sm_80: 255 registers and" in spilled
    assert "too large (several) on sm_80:" in large
    assert "bytes of shared memory, 166912 are there" in large
    assert "wrong (several) on sm_80 does not compile:" in wrong
