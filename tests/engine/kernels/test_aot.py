"""Every GPU kernel compiles for every architecture without spilling registers, its shared memory is there, and from 9.0
on all but the first of a launch wait for the kernel before them.

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
from tests.engine.kernels.compile_all import identity, of_programs

CHILD = Path(__file__).with_name("compile_all.py")
SOURCES = Path(flame.engine.kernels.__file__).parent
SHARES = [(90, "1/2"), (90, "2/2"), (80, "1/1"), (100, "1/1"), (120, "1/1")]
"""Architectures, and the parts their kernels are compiled in, to keep two cores busy.

8.9 is not among them: it runs the kernels of 12.0, whose shared memory is as small, and Triton writes the code for it
that it writes for 8.0.
"""
REGISTERS = 65536
"""Of a multiprocessor, on every architecture."""

Compile = Callable[..., list[dict[str, Any]]]


class Allowed(NamedTuple):
    """A kernel that may take more than none of the stack, in bytes per thread, and why."""

    operation: str
    function: str
    capabilities: tuple[int, ...]
    stack: int
    reason: str


_REDO = "rows out of the softmax's range are redone by a call, which needs a frame; they are rare"
_WIDE = "runs once a launch, not once a layer; a smaller tile would read the weights twice as often"
_ELSEWHERE = "at most four registers; the tile is the one measured on 9.0"
ALLOWED = (
    Allowed("climber_stack", "climber_team", (90,), 256, _REDO),
    Allowed("climber_stack", "climber_wide", (90,), 256, _REDO),
    Allowed("fusion", "fusion", (80, 90, 120), 128, _WIDE),
    Allowed("experts", "experts", (80,), 16, _ELSEWHERE),
    Allowed("attention", "attention_kernel", (100, 120), 16, _ELSEWHERE),
)


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
        if one["registers"] * one["threads"] > REGISTERS:
            lines.append(f"{name}: {one['registers']} registers in each of {one['threads']} threads")
        if one["serial"]:
            lines.append(f"{name}: products of warpgroups wait for each other, says the compiler")
        if one["shared"] > shared_limit(capability):
            lines.append(f"{name}: {one['shared']} bytes of shared memory, {shared_limit(capability)} are there")
        if one["dependent"] and not one["waits"]:
            lines.append(f"{name} is launched as a dependent and writes or ends before it waits")
    return lines


def stack_limit(one: dict[str, Any], capability: int) -> int:
    key = (one["operation"], one["function"])
    return max((row.stack for row in ALLOWED if key == row[:2] and capability in row.capabilities), default=0)


def launched() -> set[tuple[str, str]]:
    """Operation and name of the Triton functions that no other one calls: those are kernels."""
    written: set[tuple[str, str]] = set()
    called: set[tuple[str, str]] = set()
    for path in SOURCES.glob("*/triton.py"):
        body = ast.parse(path.read_text()).body
        functions = [node for node in body if isinstance(node, ast.FunctionDef) and is_device_code(node)]
        written |= {(path.parent.name, function.name) for function in functions}
        places = {function.name: path.parent.name for function in functions} | imported(body)
        for node in (node for function in functions for node in ast.walk(function)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in places:
                called.add((places[node.func.id], node.func.id))
    return written - called


def is_device_code(function: ast.FunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def imported(body: list[ast.stmt]) -> dict[str, str]:
    """Names that come from another operation's device code, and that operation."""
    return {
        name.name: str(node.module).split(".")[-2]
        for node in body
        if isinstance(node, ast.ImportFrom) and str(node.module).endswith(".triton")
        for name in node.names
    }


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


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(("capability", "share"), SHARES)
def test_every_kernel_compiles_and_fits(compile_kernels: Compile, capability: int, share: str) -> None:
    found = compile_kernels(capability, f"--share={share}")
    assert len(found) > 20
    assert not excesses(found, capability)
    dependent = {one["operation"]: one["dependent"] for one in found}
    # The first of a launch begins when the launch before has ended: its words are still read until then.
    assert not dependent.pop("gather", False)
    assert set(dependent.values()) == {capability >= 90}


def test_8_9_has_no_kernels_of_its_own() -> None:
    ours, theirs = ({identity(kernel) for _, kernel in of_programs(capability)} for capability in (89, 120))
    assert ours == theirs
    assert shared_limit(89) == shared_limit(120)


def test_no_kernel_is_missed(compile_kernels: Compile) -> None:
    found = compile_kernels(90, "--list")
    seen = {(one["operation"], one["function"]) for one in found}
    assert launched() - seen == set()
    files = {path.relative_to(SOURCES) for path in SOURCES.rglob("*.cu")}
    assert {(path.parts[0], path.name) for path in files} <= {(one["operation"], one["file"]) for one in found}


KERNELS = """
import triton
import triton.language as tl

from flame.engine.kernels.dependent.triton import wait_for_kernel_before
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


@triton.jit
def hasty(x, DEPENDENT: tl.constexpr):
    tl.store(x, 1)
    wait_for_kernel_before(DEPENDENT)
    tl.store(x, 2)


def dependents():
    yield TritonKernel("hasty", hasty, {"x": "*i32"}, {})
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


def test_a_dependent_that_writes_before_it_waits_is_told(compile_kernels: Compile, tmp_path: Path) -> None:
    file = tmp_path / "several.py"
    file.write_text(KERNELS.replace("def kernels()", "def others()").replace("def dependents()", "def kernels()"))
    (hasty,) = excesses(compile_kernels(90, file), 90)
    assert hasty.endswith("hasty (several) on sm_90 is launched as a dependent and writes or ends before it waits")
    assert excesses(compile_kernels(80, file), 80) == []
