"""Climber: a transformer block per sub-sequence of the history, fused per candidate (arXiv 2502.09888, 2509.22681).

Weights, by name, with `blocks` = sequences of the schema, stacked first so that one launch can run all blocks:

    input.*                     `InputStage`, shared by the blocks
    relative_bias.*             `RelativeBiasTables`, only with `climber.relative_bias`
    layers.{i}.*                `ClimberLayer` with `blocks` stack entries
    fusion.*                    `GatedFusion`
    head.*                      `ExpertHead` over blocks * dim inputs

Each class lists its own tensors and formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from flame.engine.inputs import ModelInputs
from flame.engine.models.base import ModelState, RankModel
from flame.engine.models.climber_layer import ClimberLayer, Past
from flame.engine.models.gating import GatedFusion
from flame.engine.models.head import ExpertHead
from flame.engine.models.input_stage import InputStage
from flame.engine.models.masks import additive, history_mask, rank_mask
from flame.engine.models.relative_bias import RelativeBiasTables
from flame.engine.spec import ModelSpec


class EncodedHistory(NamedTuple):
    """The state of a Climber: what its candidates attend to.

    keys, values [users, layers, blocks, heads, events, head dim]; lengths [users, blocks]; ages [users, blocks, events]
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    ages: Tensor


class Climber(RankModel):
    """The model; `spec.climber` gives its sizes."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.climber is not None
        sizes, schema = spec.climber, spec.input
        blocks, scenarios = len(schema.sequences), schema.scenarios
        shape = (sizes.dim, sizes.heads, sizes.ffn, scenarios, sizes.wiring)
        self.causal = sizes.causal
        self.input = InputStage(schema, sizes.dim)
        self.relative_bias = (
            RelativeBiasTables(blocks, sizes.heads, scenarios, sizes.relative_bias) if sizes.relative_bias else None
        )
        layers = nn.ModuleList(ClimberLayer(blocks, *shape) for _ in range(sizes.layers))
        self.layers = cast("Sequence[ClimberLayer]", layers)
        self.fusion = GatedFusion(blocks, *shape, reduction=sizes.gate_reduction)
        self.head = ExpertHead(
            blocks * sizes.dim,
            len(spec.tasks),
            sizes.experts,
            sizes.expert_hidden,
            sizes.expert_dim,
            sizes.tower_hidden,
        )

    def rank(self, inputs: ModelInputs) -> Tensor:
        """One pass over history and candidates side by side, under one dense mask."""
        events = inputs.event_item.shape[-1]
        candidates = self._candidates(inputs)
        x = torch.cat([self.input.events(inputs), candidates], 2)
        mask = additive(rank_mask(inputs.event_valid, candidates.shape[2], self.causal))
        own, theirs = _event_places(inputs), _candidate_places(inputs.lengths, candidates.shape[2])
        places = (torch.cat([own[0], theirs[0]], -1), torch.cat([own[1], theirs[1]], -1))
        bias = self.relative_bias(places, places, inputs.scenario) if self.relative_bias else None
        for layer in self.layers:
            x, _ = layer(x, mask, bias, inputs.scenario)
        return self._logits(x[:, :, events:], inputs.scenario)

    def encode(self, inputs: ModelInputs) -> ModelState:
        """Keys and values of every layer; the last layer is left after its projection."""
        return self._encode(inputs, 0, [None] * len(self.layers))

    def append(self, state: ModelState, inputs: ModelInputs, prefix: int) -> ModelState:
        keys, values, _, _ = EncodedHistory(*state)
        past = [(keys[:, layer, ..., :prefix, :], values[:, layer, ..., :prefix, :]) for layer in range(keys.shape[1])]
        return self._encode(inputs, prefix, past)

    def score(self, state: ModelState, inputs: ModelInputs) -> Tensor:
        """Candidates against encoded histories, and against themselves."""
        history = EncodedHistory(*state)
        x = self._candidates(inputs)
        slots = torch.arange(history.ages.shape[-1], device=x.device)
        seen = slots < history.lengths[:, :, None, None, None]
        mask = additive(nn.functional.pad(seen, (0, 1), value=True))
        bias = self._score_bias(history, x.shape[2], inputs.scenario)
        for index, layer in enumerate(self.layers):
            queries, keys, values = layer.project(x)
            past = queries @ history.keys[:, index].transpose(-1, -2)
            itself = (queries * keys).sum(-1, keepdim=True)
            logits = layer.logits(torch.cat([past, itself], -1), bias, inputs.scenario)
            weights = torch.softmax(logits + mask, -1)
            attended = weights[..., :-1] @ history.values[:, index] + weights[..., -1:] * values
            x = layer.finish(x, attended)
        return self._logits(x, inputs.scenario)

    def _encode(self, inputs: ModelInputs, first: int, past: Sequence[Past | None]) -> EncodedHistory:
        """The events from slot `first` on, behind the `past` of every layer."""
        x = self.input.events(inputs, first)
        mask = additive(history_mask(inputs.event_valid, self.causal)[..., first:, :])
        slots, ages = _event_places(inputs)
        own, all_of_them = (slots[..., first:], ages[..., first:]), (slots, ages)
        bias = self.relative_bias(own, all_of_them, inputs.scenario) if self.relative_bias else None
        projections = []
        for layer, before in zip(self.layers[:-1], past, strict=False):
            x, projected = layer(x, mask, bias, inputs.scenario, before)
            projections.append(projected)
        projections.append(self.layers[-1].project(x).behind(past[-1]))
        keys = torch.stack([projected.keys for projected in projections], 1)
        values = torch.stack([projected.values for projected in projections], 1)
        return EncodedHistory(keys, values, inputs.lengths, ages)

    def _candidates(self, inputs: ModelInputs) -> Tensor:
        """Candidate tokens, the same for every block: `[users, blocks, candidates, dim]`."""
        return self.input.candidates(inputs)[:, None].expand(-1, inputs.lengths.shape[1], -1, -1)

    def _score_bias(self, history: EncodedHistory, candidates: int, scenario: Tensor) -> Tensor | None:
        """Bias of candidates towards the history's slots and, in the last column, towards themselves."""
        if self.relative_bias is None:
            return None
        slots = torch.arange(history.ages.shape[-1], dtype=torch.int32, device=history.ages.device)
        keys = (slots.expand_as(history.ages), history.ages)
        past: Tensor = self.relative_bias(_candidate_places(history.lengths, candidates), keys, scenario)
        itself = self.relative_bias.of_itself(scenario).expand(-1, -1, -1, candidates, 1)
        return torch.cat([past, itself], -1)

    def _logits(self, outputs: Tensor, scenario: Tensor) -> Tensor:
        logits: Tensor = self.head(self.fusion(outputs, scenario))
        return logits


def _event_places(inputs: ModelInputs) -> tuple[Tensor, Tensor]:
    """Position and age of the events, each int32 `[users, sequences, events]`; unused slots have age 0."""
    slots = torch.arange(inputs.event_item.shape[-1], dtype=torch.int32, device=inputs.event_item.device)
    return slots.expand_as(inputs.event_item), torch.where(inputs.event_valid, inputs.event_age, 0)


def _candidate_places(lengths: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Candidates stand right after the newest event, at its time: each `[users, sequences, candidates]`."""
    positions = lengths[..., None].expand(-1, -1, candidates)
    return positions, torch.zeros_like(positions)
