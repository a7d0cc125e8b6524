"""What is done to the parts of a baseline before they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo

_MOST_VERSIONS = 64
"""Of one part: variants share code, and have shapes, masks and ways to attend of their own."""

Part = Callable[..., Any]
Compile = Callable[[Part], Part]
"""Nothing, or `torch.compile`."""


def as_it_is(part: Part) -> Part:
    """For models that run eagerly."""
    return part


def compiled(part: Part) -> Part:
    """For static shapes. Layers share one compiled part: their weights are arguments of it."""
    torch._dynamo.config.recompile_limit = _MOST_VERSIONS
    return torch.compile(part, dynamic=False, fullgraph=True)
