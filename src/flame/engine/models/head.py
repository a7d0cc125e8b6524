"""Multi-task heads: logits per task from one vector per candidate, and scores from logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flame.engine.models.linear import StackedLinear
from flame.engine.spec import Task


def activate(logits: Tensor, tasks: Sequence[Task]) -> Tensor:
    """`logits` `[users, candidates, tasks]` as scores, each task after its activation."""
    by_task = [
        torch.sigmoid(part) if task.activation == "sigmoid" else part
        for task, part in zip(tasks, logits.unbind(-1), strict=True)
    ]
    return torch.stack(by_task, -1)


class Towers(nn.Module):
    """One small network per task.

    hidden.weight [tasks, tower hidden, inputs], hidden.bias [tasks, tower hidden]
    out.weight [tasks, 1, tower hidden], out.bias [tasks, 1]

    logit of task t = out_t(relu(hidden_t(x_t)))
    """

    def __init__(self, tasks: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = StackedLinear(tasks, inputs, hidden)
        self.out = StackedLinear(tasks, hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[users, tasks, candidates, inputs]` -> logits `[users, candidates, tasks]`."""
        logits: Tensor = self.out(torch.relu(self.hidden(x)))
        return logits.squeeze(-1).transpose(1, 2)


class ExpertHead(nn.Module):
    """Shared experts, mixed for each task by its gate (MMoE), then a tower per task.

    experts_in.weight [experts, hidden, inputs], experts_in.bias [experts, hidden]
    experts_out.weight [experts, expert dim, hidden], experts_out.bias [experts, expert dim]
    gates.weight [tasks, experts, inputs], gates.bias [tasks, experts]
    towers: `Towers` over the expert dim

    expert_e = experts_out_e(relu(experts_in_e(x)));  mix_t = sum over e of softmax(gates_t(x))_e * expert_e
    """

    def __init__(self, inputs: int, tasks: int, experts: int, hidden: int, dim: int, tower_hidden: int) -> None:
        super().__init__()
        self.experts_in = StackedLinear(experts, inputs, hidden)
        self.experts_out = StackedLinear(experts, hidden, dim)
        self.gates = StackedLinear(tasks, inputs, experts)
        self.towers = Towers(tasks, dim, tower_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[users, candidates, inputs]` -> logits `[users, candidates, tasks]`."""
        shared = x[:, None]
        experts = self.experts_out(torch.relu(self.experts_in(_repeat(shared, self.experts_in))))
        shares = torch.softmax(self.gates(_repeat(shared, self.gates)), -1)
        mixed = torch.einsum("utce,uecd->utcd", shares, experts)
        logits: Tensor = self.towers(mixed)
        return logits


def _repeat(x: Tensor, layer: StackedLinear) -> Tensor:
    """One `x` `[users, 1, rows, inputs]` for every stack entry of `layer`, as a view."""
    return x.expand(-1, layer.weight.shape[0], -1, -1)
