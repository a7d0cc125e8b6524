"""What of this machine decides whether compiled code runs on it, and how fast."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_DRIVER = Path("/proc/driver/nvidia/version")


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


def graphics_card(device: str) -> dict[str, str]:
    """Name, compute capability and driver of a CUDA device that PyTorch finds; an unknown driver is empty."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    try:
        driver = _DRIVER.read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        driver = ""
    return {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}", "driver": driver}


def thread_cores() -> int:
    """Cores that the calling thread may run on; a system call."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Cores this process may run on, and no more than its containers may use: threads beyond are only held back."""
    return max(1, min([thread_cores(), *container_limits(_GROUPS, _own_group())]))


def container_limits(groups: Path, own: str) -> Iterator[int]:
    """CPU quotas, in cores rounded up, of the control group `own` and of those above it, below `groups` (cgroup v2)."""
    for group in (Path(own), *Path(own).parents):
        try:
            quota, period = (groups / group.relative_to("/") / "cpu.max").read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            yield math.ceil(int(quota) / int(period))


def _own_group() -> str:
    """The control group of this process, `/` where it cannot be told."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "/"
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")


def _cpuinfo() -> dict[str, str]:
    """The first processor of `/proc/cpuinfo`, or nothing where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = text.partition("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
