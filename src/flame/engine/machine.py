"""What of this machine decides whether compiled code runs on it, and how fast."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


@cache
def processor() -> dict[str, str]:
    """Architecture, model name and instruction sets of the processor; unknown parts are empty."""
    fields = _cpuinfo()
    flags = fields.get("flags") or fields.get("Features") or ""
    return {
        "architecture": platform.machine(),
        "cpu": fields.get("model name") or platform.processor(),
        "cpu_flags": " ".join(sorted(flags.split())),
    }


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """The first processor of `/proc/cpuinfo`, or nothing where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = text.partition("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
