"""Trains a ranker on packed examples: losses, regularisation, one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from examples.movielens.packing import Example, pack
from flame.engine.inputs import ModelInputs, unpack
from flame.engine.models import Climber
from flame.schema import InputSchema


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train; the learning rate rises for a tenth of the steps and falls to zero in a half cosine."""

    epochs: int = 16
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    dropout: float = 0.3
    listwise: float = 0.5
    gradient_norm: float = 1.0


class Trainer:
    """A model, its optimiser and its schedule; `step` takes one batch."""

    def __init__(self, model: Climber, schema: InputSchema, recipe: Recipe, steps: int) -> None:
        self.model, self.schema, self.recipe = model, schema, recipe
        self.dropout = nn.Dropout(recipe.dropout)
        for module in (model.input.items, model.fusion, *(layer.ffn_out for layer in model.layers)):
            if module is not None:
                module.register_forward_hook(self._drop)
        matrices = [weight for weight in model.parameters() if weight.ndim > 1]
        others = [weight for weight in model.parameters() if weight.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: pace(step, steps))

    def step(self, examples: Sequence[Example]) -> float:
        """One update from one batch; returns the loss before it."""
        self.model.train()
        self.dropout.train()
        inputs, labels = tensors(examples, self.schema)
        value = loss(self.model(inputs), labels, inputs.candidate_valid, self.recipe.listwise)
        self.optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_norm, error_if_nonfinite=True)
        self.optimiser.step()
        self.schedule.step()
        self.model.eval()
        self.dropout.eval()
        return float(value.detach())

    def _drop(self, module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        """A hook, so that the served model needs no trace of dropout."""
        dropped: Tensor = self.dropout(output)
        return dropped


def pace(step: int, steps: int) -> float:
    """The share of the full learning rate at a step: up in a tenth of the steps, then down a half cosine to zero."""
    warm = max(1.0, steps / 10)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1.0, steps - warm))


def tensors(examples: Sequence[Example], schema: InputSchema) -> tuple[ModelInputs, Tensor]:
    """The model's inputs, and labels `[users, candidates, tasks]` with zeros in unused slots."""
    words, layout = pack(examples, schema)
    labels = np.zeros((layout.users, layout.candidates, examples[0].labels.shape[1]), np.float32)
    for user, example in enumerate(examples):
        labels[user, : len(example.labels)] = example.labels
    return unpack(torch.from_numpy(words), layout), torch.from_numpy(labels)


def loss(logits: Tensor, labels: Tensor, valid: Tensor, listwise: float) -> Tensor:
    """Cross-entropy of each candidate, which makes scores probabilities, plus `listwise` times a ranking loss.

    The ranking loss is the cross-entropy of each positive among the candidates that were not watched (task 0), as a
    mean over a user's positives and then over users and tasks. `logits`, `labels` `[users, candidates, tasks]`.
    """
    pointwise = nn.functional.binary_cross_entropy_with_logits(logits[valid], labels[valid])
    if not listwise:
        return pointwise
    unwatched = valid[..., None] & (labels[..., :1] == 0)
    rivals = logits.masked_fill(~unwatched, -1e9).logsumexp(1, keepdim=True)
    surprise = torch.logaddexp(logits, rivals) - logits
    ranking = (surprise * labels).sum(1) / labels.sum(1).clamp(min=1)
    return pointwise + listwise * ranking.mean()


@torch.no_grad()
def settle_untrained(table: nn.Embedding, trained: np.ndarray) -> None:
    """Gives movies that no training event has shown the vector of an unknown movie (row 0), which was trained."""
    untrained = np.setdiff1d(np.arange(1, table.num_embeddings), trained)
    table.weight[torch.from_numpy(untrained)] = table.weight[0].clone()
