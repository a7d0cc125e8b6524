"""Learned attention bias by distance in position and in time (Climber's f_b; arXiv 2502.09888, eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flame.engine.spec import RelativeBias


def time_bucket(seconds: Tensor, buckets: int) -> Tensor:
    """`min(floor(log2(1 + seconds)), buckets - 1)`, exactly: how many of 1, 3, 7, 15, ... are no larger.

    A logarithm would round, and not every runtime that this model is converted to can take one apart.
    """
    bounds = 2 ** torch.arange(1, min(buckets, 63), device=seconds.device) - 1
    return torch.bucketize(seconds.long(), bounds, right=True)


class RelativeBiasTables(nn.Module):
    """Tables per block and head; all layers of a block share them.

    positions [blocks, heads, 2 * positions + 1]   at clip(key - query, -positions, positions) + positions
    times [blocks, heads, time buckets]            at time_bucket(|age of query - age of key|)
    scenario_scale [blocks, heads, scenarios]

    bias = scenario_scale[scenario] * (positions[...] + times[...])

    An event stands at its slot, a candidate at the length of the sequence with age 0. The scenario scales, because
    a term that is equal for all keys of a row would cancel in the softmax.
    """

    def __init__(self, blocks: int, heads: int, scenarios: int, sizes: RelativeBias) -> None:
        super().__init__()
        self.reach = sizes.positions
        self.buckets = sizes.time_buckets
        self.positions = nn.Parameter(_small(blocks, heads, 2 * self.reach + 1))
        self.times = nn.Parameter(_small(blocks, heads, self.buckets))
        self.scenario_scale = nn.Parameter(torch.ones(blocks, heads, scenarios))

    def forward(self, query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor], scenario: Tensor) -> Tensor:
        """Bias `[users, blocks, heads, queries, keys]`.

        `query` and `key` are position and age, each `[users, blocks, rows]`; `scenario` is `[users]`.
        """
        distance = (key[0][..., None, :] - query[0][..., :, None]).clamp(-self.reach, self.reach) + self.reach
        time = time_bucket((query[1][..., :, None] - key[1][..., None, :]).abs(), self.buckets)
        return self._scale(scenario) * (_gather(self.positions, distance) + _gather(self.times, time))

    def of_itself(self, scenario: Tensor) -> Tensor:
        """Bias of a candidate towards itself: `[users, blocks, heads, 1, 1]`."""
        own = self.positions[:, :, self.reach] + self.times[:, :, 0]
        return self._scale(scenario) * own[..., None, None]

    def _scale(self, scenario: Tensor) -> Tensor:
        return self.scenario_scale[:, :, scenario].permute(2, 0, 1)[..., None, None]


def _small(*shape: int) -> Tensor:
    """Random numbers near zero; none on the meta device, for the reason that `input_stage.embedding` has."""
    return torch.empty(shape) if torch.get_default_device().type == "meta" else 0.02 * torch.randn(shape)


def _gather(table: Tensor, index: Tensor) -> Tensor:
    """`table` `[blocks, heads, entries]` at `index` `[users, blocks, queries, keys]`, heads third in the result."""
    blocks, _, entries = table.shape
    start = torch.arange(blocks, device=index.device)[:, None, None] * entries
    rows = table.transpose(1, 2).flatten(0, 1)
    return nn.functional.embedding(index + start, rows).permute(0, 1, 4, 2, 3)
