"""Models of the scenarios: a preset, or a preset made wider."""

from __future__ import annotations

import xxhash
from msgspec import json
from msgspec.structs import replace

from flame.engine.package import ModelPackage, load
from flame.engine.random_weights import random_weights
from flame.engine.spec import ModelSpec
from flame.errors import ConfigError

_HEAD_DIM = 64
_VOCABULARY = 20_000


def package(source: str, width: int) -> ModelPackage:
    """The package of `source`; with `width`, its spec in that size and random weights. Raises as `load` does."""
    if not width:
        return load(source)
    spec = widened(load(source).spec, width)
    digest = xxhash.xxh3_128_hexdigest(json.encode(spec))
    return ModelPackage(spec, random_weights(spec, seed=0), None, digest)


def widened(spec: ModelSpec, width: int) -> ModelSpec:
    """A Climber of dim `width` with heads of 64, a feed-forward net of four times the dim, and a smaller item table."""
    if spec.climber is None:
        raise ConfigError(f"only a Climber is made wider, and {spec.name} is none")
    sizes = replace(spec.climber, dim=width, heads=width // _HEAD_DIM, ffn=4 * width)
    table = replace(spec.input.item_id, vocabulary=_VOCABULARY, dim=width)
    return replace(spec, name=f"{spec.name}-{width}", input=replace(spec.input, item_id=table), climber=sizes)
