"""The machine line of a report: what ran the measurement, so that two results can be compared or not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import flame

PACKAGES = ("torch", "numpy", "numba", "openvino", "triton")
"""Packages whose version decides how fast the engine is; absent ones are left out."""


def describe() -> dict[str, Any]:
    """Processor, memory, accelerator, versions and commit, as plain values for JSON. Imports nothing heavy."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "flame": flame.__version__,
        "compiled": flame.compiled(),
        **_versions(),
        **_commit(Path(flame.__file__)),
    }


def _cpu_model() -> str:
    """The name the kernel gives the processor, and the widest vector instructions it has."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    widest = next((flag for flag in ("amx_tile", "avx512f", "avx2", "sve", "asimd") if flag in flags), "")
    return f"{fields.get('model name', platform.machine())} {widest}".strip()


def _gpus() -> list[str]:
    """Name and memory of every NVIDIA device, as its driver tells; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit(file: Path) -> dict[str, Any]:
    """Commit of the checkout that holds `file` and whether it has changes; empty for an installed package.

    A copy of a checkout that came without its history is told by the variable GIT_COMMIT, as build servers set it.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        told = os.environ.get("GIT_COMMIT")
        return {"commit": told, "dirty": None} if told else {}
    commit = _git(file.parent, "rev-parse", "HEAD")
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *words: str) -> str | None:
    """Output of a git command in `folder`; None where there is no git or it says no."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
