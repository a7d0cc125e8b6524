"""What is done to the parts of a baseline before they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Part = Callable[..., Any]
Compile = Callable[[Part], Part]
"""Nothing, or `torch.compile`."""


def as_it_is(part: Part) -> Part:
    """For models that run eagerly."""
    return part


def compiled(part: Part) -> Part:
    """For static shapes. Layers share one compiled part: their weights are arguments of it."""
    return torch.compile(part, dynamic=False, fullgraph=True)
