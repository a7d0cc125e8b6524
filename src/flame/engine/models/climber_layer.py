"""The adaptive transformer layer of Climber, for all blocks at once."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from flame.engine.models.linear import StackedLinear, StackedNorm

Past = tuple[Tensor, Tensor]
"""Keys and values of the rows before some rows, each `[users, blocks, heads, rows, head dim]`."""


class Projections(NamedTuple):
    """Queries, keys and values of some rows, each `[users, blocks, heads, rows, head dim]`."""

    queries: Tensor
    keys: Tensor
    values: Tensor

    def behind(self, past: Past | None) -> Projections:
        """These rows as what sees itself and the rows before it."""
        if past is None:
            return self
        keys, values = (torch.cat(pair, -2) for pair in zip(past, self[1:], strict=True))
        return Projections(self.queries, keys, values)


class ClimberLayer(nn.Module):
    """Attention with a learned temperature, then a feed-forward net; the weights of all blocks are stacked.

    qkv.weight [blocks, 3 * dim, dim], qkv.bias [blocks, 3 * dim]     rows: queries, keys, values; heads within each
    log_temperature [blocks, scenarios]                               natural logarithm, so the temperature is positive
    ffn_in.weight [blocks, ffn, dim], ffn_in.bias [blocks, ffn]
    ffn_out.weight [blocks, dim, ffn], ffn_out.bias [blocks, dim]
    norm.weight [blocks, dim], norm.bias [blocks, dim]                eps 1e-5

    A = softmax((q k^T + relative bias) / temperature) v        the heads side by side, no output projection
    wiring "flame" (FLAME, figure 8):   O = A + X;  X' = O + norm(ffn_out(relu(ffn_in(O))))
    wiring "climber" (Climber's own):   X' = norm(X + ffn_out(relu(ffn_in(A))))
    """

    def __init__(
        self, blocks: int, dim: int, heads: int, ffn: int, scenarios: int, wiring: Literal["flame", "climber"]
    ) -> None:
        super().__init__()
        self.heads = heads
        self.wiring = wiring
        self.qkv = StackedLinear(blocks, dim, 3 * dim)
        self.log_temperature = nn.Parameter(torch.full((blocks, scenarios), math.log(math.sqrt(dim // heads))))
        self.ffn_in = StackedLinear(blocks, dim, ffn)
        self.ffn_out = StackedLinear(blocks, ffn, dim)
        self.norm = StackedNorm(blocks, dim)

    def project(self, x: Tensor) -> Projections:
        """`x` `[users, blocks, rows, dim]`."""
        users, blocks, rows, dim = x.shape
        split = self.qkv(x).reshape(users, blocks, rows, 3, self.heads, dim // self.heads)
        return Projections(*split.permute(3, 0, 1, 4, 2, 5))

    def forward(
        self, x: Tensor, mask: Tensor | None, bias: Tensor | None, scenario: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Projections]:
        """All rows against all rows: the next `x` and this layer's projections, behind the `past` if there is one.

        `mask` (of 0 and -inf) `[users, blocks, 1, rows, keys]`, `bias` `[users, blocks, heads, rows, keys]`,
        `scenario` `[users]`. The mask is added after the division, or the temperature's gradient would be NaN.
        """
        projections = self.project(x).behind(past)
        queries, keys, values = projections
        logits = self.logits(queries @ keys.transpose(-1, -2), bias, scenario)
        weights = torch.softmax(logits if mask is None else logits + mask, -1)
        return self.finish(x, weights @ values), projections

    def logits(self, products: Tensor, bias: Tensor | None, scenario: Tensor) -> Tensor:
        """`(q k^T + bias) / temperature`."""
        temperature = self.log_temperature[:, scenario].T.exp()[:, :, None, None, None]
        return (products if bias is None else products + bias) / temperature

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer after attention; `attended` `[users, blocks, heads, rows, head dim]`."""
        attended = attended.transpose(2, 3).flatten(3)
        if self.wiring == "climber":
            out: Tensor = self.norm(x + self._feed_forward(attended))
            return out
        residual = x + attended
        normal: Tensor = self.norm(self._feed_forward(residual))
        return residual + normal

    def _feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ffn_out(torch.relu(self.ffn_in(x)))
        return out
