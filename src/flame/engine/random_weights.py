"""Random weights that behave like trained ones: nothing neutral, nothing saturated, scores that differ."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from flame.engine.models import ITEM_TABLE, create, expected_tensors
from flame.engine.spec import ModelSpec

_TABLES = ("items", "actions", "positions", "categories", "times", "scenarios")
_TABLE_STD = 0.3
"""A token is the sum of about a dozen table rows, so its components have a standard deviation of about one."""

_GAIN = {"qkv": 0.7, "ffn_out": 0.7, "experts_in": 0.5, "experts_out": 1.5, "hidden": 1.5, "out": 1.5}
"""Standard deviation of a layer's output for inputs of standard deviation one; 1 where nothing is said."""
_VALUE_GAIN = 0.6
"""Of the values of a Climber layer; with its norm's gain it keeps a dozen layers without other norms from growing."""


def random_weights(spec: ModelSpec, seed: int, *, module_source: Path | None = None) -> dict[str, Tensor]:
    """All tensors of the model by name, float32 on the CPU; equal seeds give equal weights.

    Temperatures, biases and norm gains are away from their neutral values, so that an engine that forgets one is
    found out. A module of one's own keeps the weights it initialises itself with.
    """
    generator = torch.Generator().manual_seed(seed)
    if spec.module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            own = create(spec, module_source=module_source).state_dict()
        return {name: tensor.detach().clone() for name, tensor in own.items()} | _host_table(spec, generator)
    tensors = expected_tensors(spec)
    return {name: _draw(name, tuple(tensor.shape), spec, generator) for name, tensor in tensors.items()}


def _host_table(spec: ModelSpec, generator: torch.Generator) -> dict[str, Tensor]:
    table = spec.input.item_id
    if table.lookup == "device":
        return {}
    return {ITEM_TABLE: _TABLE_STD * torch.randn(table.vocabulary, table.dim, generator=generator)}


def _draw(name: str, shape: tuple[int, ...], spec: ModelSpec, generator: torch.Generator) -> Tensor:
    """One tensor of a Climber or an HSTU, by what its name says it is."""
    noise = torch.randn(shape, generator=generator)
    *_, owner, kind = name.split(".")
    if kind == "log_temperature":
        assert spec.climber is not None
        return math.log(math.sqrt(spec.climber.dim // spec.climber.heads)) + 0.2 * noise
    if kind == "scenario_scale":
        return 1 + 0.2 * noise
    if owner.startswith("norm") and kind == "weight":
        return _norm_gain(spec) * (1 + 0.2 * noise)
    if owner == "relative_bias":
        return 2.0 * noise
    if kind == "bias":
        return 0.1 * noise
    if owner in _TABLES:
        return _TABLE_STD * noise
    weight = noise * _GAIN.get(owner, 1.0) / math.sqrt(shape[-1])
    if owner == "qkv":
        weight[:, 2 * shape[-1] :] *= _VALUE_GAIN
    return weight


def _norm_gain(spec: ModelSpec) -> float:
    """Small where the norm stands on a branch; where it ends a layer it sets the scale of all that follows."""
    if spec.climber is None:
        return 1.0
    return 0.4 if spec.climber.wiring == "flame" else 2.0
