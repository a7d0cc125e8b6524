"""The multi-task head in plain PyTorch: all experts of a candidate in one product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from flame.engine.models.head import ExpertHead


class Mixture:
    """The formula of `ExpertHead`, which repeats its input for every expert where this multiplies it once."""

    def __init__(self, head: ExpertHead) -> None:
        self.head = head

    def __call__(self, x: Tensor) -> Tensor:
        """`x` `[users, candidates, inputs]` -> logits `[users, candidates, tasks]`."""
        rows, head = x.flatten(0, 1), self.head
        experts, hidden, _ = head.experts_in.weight.shape
        inner = linear(rows, head.experts_in.weight.flatten(0, 1), head.experts_in.bias.flatten())
        by_expert = torch.relu(inner).view(len(rows), experts, hidden).transpose(0, 1)
        outputs = torch.baddbmm(head.experts_out.bias[:, None], by_expert, head.experts_out.weight.transpose(1, 2))
        gates = linear(rows, head.gates.weight.flatten(0, 1), head.gates.bias.flatten())
        shares = torch.softmax(gates.view(len(rows), -1, experts), -1)
        mixed = (shares.permute(1, 2, 0)[..., None] * outputs).sum(1)
        logits: Tensor = head.towers(mixed[None])[0]
        return logits.view(*x.shape[:2], -1)
