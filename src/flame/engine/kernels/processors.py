"""How many multiprocessors a device has: what decides how many rows a CTA of a CUDA kernel takes."""

from __future__ import annotations

import torch

HOPPER = 132
"""Of an H100 or H200 as SXM; taken where there is no device to ask."""


def processors_of(device: torch.device) -> int:
    """Of `device`, or `HOPPER` for one that is no GPU."""
    if device.type != "cuda":
        return HOPPER
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
