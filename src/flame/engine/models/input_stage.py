"""From ids and features to tokens; the one place where garbage in unused slots is replaced."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flame.engine.inputs import ModelInputs
from flame.schema import Field, InputSchema, RowLayout


class FeatureRow(nn.Module):
    """A feature row as one vector: the sum of its categories' embeddings and a linear map of its dense values.

    categories.weight [rows, dim]    the tables of the integer fields, one under the other, in declared order;
                                     a field of several words has one table, used for each word
    dense.weight [dim, floats], dense.bias [dim]

    Either part is absent where the row has no such field.
    """

    def __init__(self, fields: Sequence[Field], dim: int) -> None:
        super().__init__()
        layout = RowLayout(fields)
        self.offsets: Sequence[int] | Tensor = category_offsets(layout)
        rows = sum(field.vocabulary or 0 for field in layout.fields)
        self.categories = embedding(rows, dim) if rows else None
        self.dense = nn.Linear(layout.float_words, dim) if layout.float_words else None

    def forward(self, integers: Tensor, floats: Tensor, valid: Tensor) -> Tensor:
        """`[..., words]` of both kinds and `valid` `[...]` -> `[..., dim]`; zeros `[..., 1]` for an empty row."""
        total = torch.zeros(*valid.shape, 1, device=valid.device)
        if self.categories is not None:
            offsets = torch.as_tensor(self.offsets, dtype=torch.int32, device=integers.device)
            rows = torch.where(valid[..., None], integers, 0) + offsets
            total = total + self.categories(rows).sum(-2)
        if self.dense is not None:
            total = total + self.dense(torch.where(valid[..., None], floats, 0.0))
        return total


class InputStage(nn.Module):
    """Tokens of events and candidates.

    items.weight [vocabulary, item dim]        absent where the host does the look-up
    item_projection.weight [dim, item dim], .bias [dim]     only where the item dim differs from the model's
    item_features, user_features, context_features          each a `FeatureRow`
    actions.weight [actions, dim]
    positions.weight [sequence capacity + 1, dim]           row 0: a candidate; row p: the p-th newest event, or the
                                                            p-th oldest, as `input.positions` says

    event     = item + item features + action + position
    candidate = item + item features + position 0 + user row + context row
    """

    def __init__(self, schema: InputSchema, dim: int) -> None:
        super().__init__()
        table = schema.item_id
        self.items = embedding(table.vocabulary, table.dim) if table.lookup == "device" else None
        self.item_projection = nn.Linear(table.dim, dim) if table.dim != dim else None
        self.item_features = FeatureRow(schema.item, dim)
        self.user_features = FeatureRow(schema.user, dim)
        self.context_features = FeatureRow(schema.context, dim)
        self.actions = embedding(schema.actions, dim)
        self.positions = embedding(schema.sequence_capacity(schema.max_history) + 1, dim)
        self.oldest_first = schema.positions == "oldest"

    def events(self, inputs: ModelInputs, first: int = 0) -> Tensor:
        """Event tokens `[users, sequences, events, dim]` from slot `first` on; no others are read.

        The same finite vector in all unused slots of a sequence.
        """
        if first:
            inputs = inputs.events_from(first)
        valid = inputs.event_valid
        slots = torch.arange(valid.shape[-1], device=valid.device)
        places = first + 1 + slots if self.oldest_first else inputs.lengths[..., None] - slots
        tokens = self._items(inputs.event_item, inputs.event_embedding, valid)
        tokens = tokens + self.item_features(inputs.event_integers, inputs.event_floats, valid)
        tokens = tokens + self.actions(torch.where(valid, inputs.event_action, 0))
        total: Tensor = tokens + self.positions(torch.where(valid, places, 0))
        return total

    def candidates(self, inputs: ModelInputs) -> Tensor:
        """Candidate tokens `[users, candidates, dim]`."""
        valid = inputs.candidate_valid
        used = inputs.candidate_count > 0
        tokens = self._items(inputs.candidate_item, inputs.candidate_embedding, valid)
        tokens = tokens + self.item_features(inputs.candidate_integers, inputs.candidate_floats, valid)
        tokens = tokens + self.positions.weight[0]
        user = self.user_features(inputs.user_integers, inputs.user_floats, used)
        context = self.context_features(inputs.context_integers, inputs.context_floats, used)
        total: Tensor = tokens + (user + context)[:, None]
        return total

    def _items(self, rows: Tensor, looked_up: Tensor | None, valid: Tensor) -> Tensor:
        """Item vectors in the model's dim, from the table or from what the host looked up."""
        found: Tensor
        if self.items is not None:
            found = self.items(torch.where(valid, rows, 0))
        else:
            assert looked_up is not None
            found = torch.where(valid[..., None], looked_up, 0.0)
        if self.item_projection is not None:
            found = self.item_projection(found)
        return found


def embedding(rows: int, dim: int) -> nn.Embedding:
    """A table whose rows have a norm of about one, so that a sum of several stays moderate."""
    if torch.get_default_device().type == "meta":
        # There is nothing to draw, and to draw it PyTorch would import its compiler: two seconds at every start.
        return nn.Embedding(rows, dim, _weight=torch.empty(rows, dim))
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=1 / math.sqrt(dim))
    return table


def category_offsets(layout: RowLayout) -> list[int]:
    """For each integer word of a row, where its field's table starts in the combined table."""
    offsets: list[int] = []
    start = 0
    for field in layout.fields:
        if field.vocabulary is not None:
            offsets += [start] * field.words
            start += field.vocabulary
    return offsets
