"""HSTU's input stage in the fused backend: one kernel, tables of times and scenarios included."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flame.engine.backends.fused.input_sizes import token_sizes
from flame.engine.backends.fused.precision import Precision
from flame.engine.kernels.tokens import TokenPlaces, Tokens, TokenWeights
from flame.engine.spec import ModelSpec, Profile

_PREFIX = "input."
_TABLES = ("times.weight", "scenarios.weight")


def new_tokens(spec: ModelSpec, precision: Precision) -> Tokens:
    """The kernel for an HSTU: with its tables, and without ages in the states."""
    assert spec.hstu is not None
    sizes = token_sizes(spec, spec.hstu.dim, times=spec.hstu.time_buckets, scenarios=spec.input.scenarios)
    return Tokens(sizes, precision.pointer)


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
