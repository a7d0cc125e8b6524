"""What this process has used: processor time and memory, of the host and of the device."""

from __future__ import annotations

import time
from typing import NamedTuple

import psutil


class Usage(NamedTuple):
    """Processor seconds of all threads since the start, resident bytes, and bytes in use on the device by anybody."""

    process_s: float
    resident: int
    device: int


def usage(device: str) -> Usage:
    """Of now; a CPU has no memory of its own."""
    return Usage(time.process_time(), psutil.Process().memory_info().rss, _device_bytes(device))


def _device_bytes(device: str) -> int:
    if not device.startswith("cuda"):
        return 0
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)
