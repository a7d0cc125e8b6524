"""HSTU in the form of the public STU code (arXiv 2402.17152).

Weights, by name, with `value` = heads * linear_dim and `attention` = heads * attention_dim:

    input.*                                       `InputStage`
    times.weight [time buckets, dim]              added to tokens at `time_bucket(age)`, or of the gap to the event
                                                  before, 0 for the first, as `hstu.times` says; candidates have 0;
                                                  ages are int32, so rows from 32 on are never used
    scenarios.weight [scenarios, dim]             added to candidate tokens
    layers.{i}.norm_in.weight, .bias [dim]        eps 1e-6
    layers.{i}.uvqk.weight [2 * value + 2 * attention, dim], .bias      rows: u, v, q, k; heads within each
    layers.{i}.norm_out.weight, .bias [value]     eps 1e-6, over all heads together
    layers.{i}.out.weight [dim, 3 * value]        columns: u, o, y
    norm.weight, .bias [dim]                      eps 1e-6
    head.*                                        `Towers` over dim
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from flame.engine.inputs import ModelInputs
from flame.engine.models.base import ModelState, RankModel
from flame.engine.models.head import Towers
from flame.engine.models.input_stage import InputStage, embedding
from flame.engine.models.masks import history_mask, rank_mask
from flame.engine.models.relative_bias import time_bucket
from flame.engine.spec import HstuConfig, ModelSpec

Past = tuple[Tensor, Tensor]
"""Keys and values of the rows before some rows, `[users, heads, rows, dim of each]`."""


class StuProjections(NamedTuple):
    """u `[users, rows, value]`; values, queries, keys `[users, heads, rows, dim of each]`."""

    u: Tensor
    values: Tensor
    queries: Tensor
    keys: Tensor

    def behind(self, past: Past | None) -> StuProjections:
        """These rows as what sees itself and the rows before it."""
        if past is None:
            return self
        keys, values = past
        return self._replace(keys=torch.cat([keys, self.keys], -2), values=torch.cat([values, self.values], -2))


class StuLayer(nn.Module):
    """One layer: pointwise attention without softmax, gated by u.

    n = norm_in(x);  u, v, q, k = split(uvqk(n));  u = silu(u)
    o = (mask * silu(alpha * q k^T) * scale) v;  y = u * norm_out(o);  x' = x + out([u, o, y])

    alpha = attention_dim ** -0.5. `scale` is a constant of the model, never of the batch.
    """

    def __init__(self, sizes: HstuConfig, scale: float) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.alpha = 1 / math.sqrt(sizes.attention_dim)
        self.scale = scale
        value, attention = sizes.heads * sizes.linear_dim, sizes.heads * sizes.attention_dim
        self.parts = (value, value, attention, attention)
        self.norm_in = nn.LayerNorm(sizes.dim, eps=1e-6)
        self.uvqk = nn.Linear(sizes.dim, sum(self.parts))
        self.norm_out = nn.LayerNorm(value, eps=1e-6)
        self.out = nn.Linear(3 * value, sizes.dim, bias=False)

    def project(self, x: Tensor) -> StuProjections:
        """`x` `[users, rows, dim]`."""
        u, v, q, k = self.uvqk(self.norm_in(x)).split(self.parts, -1)
        return StuProjections(nn.functional.silu(u), self._by_head(v), self._by_head(q), self._by_head(k))

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention weights before the mask: `[users, heads, queries, keys]`."""
        activated: Tensor = nn.functional.silu(queries @ keys.transpose(-1, -2) * self.alpha)
        return activated * self.scale

    def forward(self, x: Tensor, mask: Tensor, past: Past | None = None) -> tuple[Tensor, StuProjections]:
        """All rows against all rows: the next `x` and this layer's projections, behind the `past` if there is one.

        `mask` (of 0 and 1) `[users, 1, rows, keys]`.
        """
        projections = self.project(x).behind(past)
        weights = self.weights(projections.queries, projections.keys) * mask
        return self.finish(x, projections.u, weights @ projections.values), projections

    def finish(self, x: Tensor, u: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer after attention; `attended` `[users, heads, rows, linear dim]`."""
        o = attended.transpose(1, 2).flatten(2)
        change: Tensor = self.out(torch.cat([u, o, u * self.norm_out(o)], -1))
        return x + change

    def _by_head(self, x: Tensor) -> Tensor:
        users, rows, width = x.shape
        return x.view(users, rows, self.heads, width // self.heads).transpose(1, 2)


class EncodedHistory(NamedTuple):
    """The state of an HSTU.

    keys [users, layers, heads, events, attention dim]; values [users, layers, heads, events, linear dim];
    lengths [users, 1]
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor


class Hstu(RankModel):
    """The model; `spec.hstu` gives its sizes.

    The attention scale is 1 / (sequence capacity at `max_history` + 1): the most keys a row can see.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.hstu is not None
        sizes, schema = spec.hstu, spec.input
        scale = 1 / (schema.sequence_capacity(schema.max_history) + 1)
        self.causal = sizes.causal
        self.buckets = sizes.time_buckets
        self.gaps = sizes.times == "gap"
        self.input = InputStage(schema, sizes.dim)
        self.times = embedding(sizes.time_buckets, sizes.dim)
        self.scenarios = embedding(schema.scenarios, sizes.dim)
        layers = nn.ModuleList(StuLayer(sizes, scale) for _ in range(sizes.layers))
        self.layers = cast("Sequence[StuLayer]", layers)
        self.norm = nn.LayerNorm(sizes.dim, eps=1e-6)
        self.head = Towers(len(spec.tasks), sizes.dim, sizes.tower_hidden)

    def seconds(self, inputs: ModelInputs) -> Tensor:
        """The time that each event's token tells, int32 `[users, sequences, events]`; 0 for unused slots."""
        ages = torch.where(inputs.event_valid, inputs.event_age, 0)
        if not self.gaps:
            return ages
        before = torch.cat([ages[..., :1], ages[..., :-1]], -1)
        return torch.where(inputs.event_valid, before - ages, 0)

    def rank(self, inputs: ModelInputs) -> Tensor:
        """One pass over history and candidates side by side, under one dense mask."""
        events = inputs.event_item.shape[-1]
        candidates = self._candidates(inputs)
        x = torch.cat([self._events(inputs), candidates], 1)
        mask = rank_mask(inputs.event_valid, candidates.shape[1], self.causal)[:, 0].float()
        for layer in self.layers:
            x, _ = layer(x, mask)
        return self._logits(x[:, events:])

    def encode(self, inputs: ModelInputs) -> ModelState:
        """Keys and values of every layer; the last layer is left after its projection."""
        return self._encode(inputs, 0, [None] * len(self.layers))

    def append(self, state: ModelState, inputs: ModelInputs, prefix: int) -> ModelState:
        keys, values, _ = EncodedHistory(*state)
        past = [(keys[:, layer, :, :prefix], values[:, layer, :, :prefix]) for layer in range(keys.shape[1])]
        return self._encode(inputs, prefix, past)

    def score(self, state: ModelState, inputs: ModelInputs) -> Tensor:
        """Candidates against encoded histories, and against themselves."""
        history = EncodedHistory(*state)
        x = self._candidates(inputs)
        slots = torch.arange(history.keys.shape[3], device=x.device)
        seen = (slots < history.lengths)[:, None, None, :]
        for index, layer in enumerate(self.layers):
            u, values, queries, keys = layer.project(x)
            past = layer.weights(queries, history.keys[:, index]) * seen
            itself = nn.functional.silu((queries * keys).sum(-1, keepdim=True) * layer.alpha) * layer.scale
            x = layer.finish(x, u, past @ history.values[:, index] + itself * values)
        return self._logits(x)

    def _encode(self, inputs: ModelInputs, first: int, past: Sequence[Past | None]) -> EncodedHistory:
        """The events from slot `first` on, behind the `past` of every layer."""
        x = self._events(inputs, first)
        mask = history_mask(inputs.event_valid, self.causal)[:, 0, :, first:].float()
        projections = []
        for layer, before in zip(self.layers[:-1], past, strict=False):
            x, projected = layer(x, mask, before)
            projections.append(projected)
        projections.append(self.layers[-1].project(x).behind(past[-1]))
        keys = torch.stack([projected.keys for projected in projections], 1)
        values = torch.stack([projected.values for projected in projections], 1)
        return EncodedHistory(keys, values, inputs.lengths)

    def _events(self, inputs: ModelInputs, first: int = 0) -> Tensor:
        """Event tokens of the one sequence, from slot `first` on: `[users, events, dim]`."""
        seconds = self.seconds(inputs)[..., first:]
        tokens: Tensor = self.input.events(inputs, first) + self.times(time_bucket(seconds, self.buckets))
        return tokens[:, 0]

    def _candidates(self, inputs: ModelInputs) -> Tensor:
        """Candidate tokens `[users, candidates, dim]`."""
        scenario: Tensor = self.scenarios(inputs.scenario)[:, None]
        return self.input.candidates(inputs) + self.times.weight[0] + scenario

    def _logits(self, outputs: Tensor) -> Tensor:
        """`outputs` `[users, candidates, dim]`."""
        shared = self.norm(outputs)[:, None]
        logits: Tensor = self.head(shared.expand(-1, self.head.hidden.weight.shape[0], -1, -1))
        return logits
