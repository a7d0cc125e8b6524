"""Bit-wise gating fusion: what the blocks say of a candidate, made one vector (arXiv 2502.09888, eq. 4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from flame.engine.models.climber_layer import ClimberLayer


class GatedFusion(nn.Module):
    """One adaptive layer over the block outputs of a candidate, then a squeeze-and-excitation gate.

    layer: a `ClimberLayer` with one stack entry; its rows are the blocks; no bias; temperature by scenario
    squeeze.weight [width // reduction, width], squeeze.bias; width = blocks * dim
    excite.weight [width, width // reduction], excite.bias

    G = layer(E), its rows side by side;  Y = G * sigmoid(excite(relu(squeeze(G))))
    """

    def __init__(
        self,
        blocks: int,
        dim: int,
        heads: int,
        ffn: int,
        scenarios: int,
        wiring: Literal["flame", "climber"],
        reduction: int,
    ) -> None:
        super().__init__()
        self.width = blocks * dim
        self.layer = ClimberLayer(1, dim, heads, ffn, scenarios, wiring)
        self.squeeze = nn.Linear(self.width, max(1, self.width // reduction))
        self.excite = nn.Linear(max(1, self.width // reduction), self.width)

    def forward(self, outputs: Tensor, scenario: Tensor) -> Tensor:
        """`outputs` `[users, blocks, candidates, dim]`, `scenario` `[users]` -> `[users, candidates, blocks * dim]`."""
        users, blocks, candidates, dim = outputs.shape
        rows = outputs.transpose(1, 2).reshape(users * candidates, 1, blocks, dim)
        fused, _ = self.layer(rows, None, None, scenario.repeat_interleave(candidates))
        wide: Tensor = fused.reshape(users, candidates, self.width)
        return wide * torch.sigmoid(self.excite(torch.relu(self.squeeze(wide))))
