"""The same as the kernels in plain fp32 PyTorch, step by step of the definition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flame.engine.kernels.towers.reference import activated, tower


def head_scores(weights: Mapping[str, Tensor], sigmoids: tuple[bool, ...], rows: Tensor) -> Tensor:
    """`rows` `[candidates, inputs]` -> scores `[candidates, tasks]`; `weights` by the names of an expert head."""
    experts = torch.stack([_expert(weights, index, rows) for index in range(len(weights["experts_in.weight"]))], 1)
    logits = []
    for task in range(len(sigmoids)):
        gate = rows @ weights["gates.weight"][task].T + weights["gates.bias"][task]
        mixed = (torch.softmax(gate, -1)[:, :, None] * experts).sum(1)
        logits.append(tower(weights, "towers.", task, mixed))
    return activated(torch.stack(logits, -1), sigmoids)


def _expert(weights: Mapping[str, Tensor], index: int, rows: Tensor) -> Tensor:
    hidden = torch.relu(rows @ weights["experts_in.weight"][index].T + weights["experts_in.bias"][index])
    return hidden @ weights["experts_out.weight"][index].T + weights["experts_out.bias"][index]
