"""HSTU's input stage in the fused backend: one kernel, tables of times and scenarios included."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flame.engine.kernels.tokens import TokenPlaces, Tokens, TokenSizes, TokenWeights
from flame.engine.models.input_stage import category_offsets
from flame.engine.spec import ModelSpec, Profile
from flame.schema import RowLayout

_PREFIX = "input."
_TABLES = ("times.weight", "scenarios.weight")


def token_sizes(spec: ModelSpec) -> TokenSizes:
    """What the tokens kernel has to know of an HSTU."""
    assert spec.hstu is not None
    schema, record = spec.input, spec.record
    item, user, context = schema.item_row, schema.user_row, schema.context_row
    return TokenSizes(
        dim=spec.hstu.dim,
        blocks=len(schema.sequences),
        item_dim=schema.item_id.dim,
        host=schema.item_id.lookup == "host",
        actions=schema.actions,
        positions=schema.sequence_capacity(schema.max_history) + 1,
        header_words=record.header_words,
        event_words=record.event_words,
        candidate_words=record.candidate_words,
        user_start=record.user_start,
        context_start=record.context_start,
        item_categories=_categories(item),
        item_offsets=tuple(category_offsets(item)),
        item_floats=item.float_words,
        user_categories=_categories(user),
        user_offsets=tuple(category_offsets(user)),
        user_floats=user.float_words,
        context_categories=_categories(context),
        context_offsets=tuple(category_offsets(context)),
        context_floats=context.float_words,
        times=spec.hstu.time_buckets,
        scenarios=schema.scenarios,
    )


def packed_tokens(
    tokens: Tokens, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> TokenWeights:
    """The input stage's weights out of a model's."""
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items() if name.startswith(_PREFIX)}
    return tokens.pack(own | {name: weights[name] for name in _TABLES}, dtype, device)


def token_places(spec: ModelSpec, profile: Profile, event_rows: int) -> TokenPlaces:
    """Where launches of `profile` find their records."""
    layout = spec.layout(profile)
    return TokenPlaces(
        layout.users, layout.events_start, layout.events, layout.candidates_start, layout.candidates, event_rows
    )


def _categories(row: RowLayout) -> int:
    return sum(field.vocabulary or 0 for field in row.fields)
