"""One linear layer per stack entry, with the weights of all of them in one tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """`stacks` independent linear layers.

    weight [stacks, outputs, inputs], bias [stacks, outputs]
    """

    def __init__(self, stacks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(stacks, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(stacks, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[users, stacks, rows, inputs]` -> `[users, stacks, rows, outputs]`."""
        users, stacks, rows, _ = x.shape
        by_stack = x.transpose(0, 1).reshape(stacks, users * rows, x.shape[-1])
        out = torch.baddbmm(self.bias[:, None], by_stack, self.weight.transpose(1, 2))
        return out.view(stacks, users, rows, out.shape[-1]).transpose(0, 1)


class StackedNorm(nn.Module):
    """LayerNorm over the last dimension with a gain and a bias of its own per stack entry, eps 1e-5.

    weight [stacks, dim], bias [stacks, dim]
    """

    def __init__(self, stacks: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(stacks, dim))
        self.bias = nn.Parameter(torch.zeros(stacks, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[users, stacks, rows, dim]`."""
        normal = nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)
        return normal * self.weight[:, None, :] + self.bias[:, None, :]
