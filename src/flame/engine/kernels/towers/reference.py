"""The same as the kernel in plain fp32 PyTorch, step by step of the definition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def normed_scores(weights: Mapping[str, Tensor], sigmoids: tuple[bool, ...], eps: float, rows: Tensor) -> Tensor:
    """`rows` `[candidates, dim]` -> scores `[candidates, tasks]`; `weights` are `norm.*` and `head.*`."""
    centred = rows - rows.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    normal = normal * weights["norm.weight"] + weights["norm.bias"]
    logits = [tower(weights, "head.", task, normal) for task in range(len(sigmoids))]
    return activated(torch.stack(logits, -1), sigmoids)


def tower(weights: Mapping[str, Tensor], prefix: str, task: int, rows: Tensor) -> Tensor:
    """Logits `[candidates]` of one task."""
    hidden = torch.relu(rows @ weights[f"{prefix}hidden.weight"][task].T + weights[f"{prefix}hidden.bias"][task])
    return hidden @ weights[f"{prefix}out.weight"][task, 0] + weights[f"{prefix}out.bias"][task, 0]


def activated(logits: Tensor, sigmoids: tuple[bool, ...]) -> Tensor:
    """Scores from logits `[candidates, tasks]`."""
    return torch.where(torch.tensor(sigmoids), torch.sigmoid(logits), logits)
