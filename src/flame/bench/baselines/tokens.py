"""The input stage of the models in one precision."""

from __future__ import annotations

from dataclasses import replace

import torch

from flame.engine.inputs import ModelInputs

_FLOATS = ("event_floats", "candidate_floats", "user_floats", "context_floats")
_LOOKED_UP = ("event_embedding", "candidate_embedding")


def cast(inputs: ModelInputs, dtype: torch.dtype) -> ModelInputs:
    """The same inputs with dense features in `dtype`, as weights of that precision take them."""
    floats = {name: getattr(inputs, name).to(dtype) for name in _FLOATS}
    found = {name: getattr(inputs, name) for name in _LOOKED_UP}
    return replace(inputs, **floats, **{name: one.to(dtype) for name, one in found.items() if one is not None})
