"""What the C++ kernels are told of a model: its sizes as constants and its weights in the order of their structs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flame.engine.kernels.cpu.compiler import Constant
from flame.engine.models.input_stage import category_offsets
from flame.engine.spec import ClimberConfig, HstuConfig, ModelSpec
from flame.schema import RowLayout

Array = NDArray[np.float32]


def constants(spec: ModelSpec) -> dict[str, Constant]:
    """The constants of `config.h` for a Climber or an HSTU."""
    own = _climber_constants(spec, spec.climber) if spec.climber else _hstu_constants(spec, spec.hstu)
    return {"SCENARIOS": spec.input.scenarios, "TASKS": len(spec.tasks)} | own | _input_constants(spec)


def weight_list(spec: ModelSpec, weights: Mapping[str, Tensor]) -> list[Array | None]:
    """The weights in the order of the `Weights` struct of climber.h or hstu.h; None where there is no such tensor."""
    names = _input_names() + (_climber_names(spec) if spec.climber else _hstu_names(spec))
    return [_array(name, weights) for name in names]


def _array(name: str, weights: Mapping[str, Tensor]) -> Array | None:
    """The tensor as an array; dense weights of feature rows transposed, because rows are built feature by feature."""
    if name not in weights:
        return None
    array: Array = weights[name].numpy()
    return np.ascontiguousarray(array.T) if name.endswith("dense.weight") else array


def _climber_constants(spec: ModelSpec, sizes: ClimberConfig) -> dict[str, Constant]:
    blocks, bias = len(spec.input.sequences), sizes.relative_bias
    width = blocks * sizes.dim
    return {
        "LAYERS": sizes.layers,
        "BLOCKS": blocks,
        "DIM": sizes.dim,
        "HEADS": sizes.heads,
        "FFN": sizes.ffn,
        "KEY_WIDTH": sizes.dim,
        "VALUE_WIDTH": sizes.dim,
        "ROW_PRODUCTS": sizes.dim * (3 * sizes.dim + 2 * sizes.ffn),
        "KEY_PRODUCTS": 2 * sizes.dim,
        "CAUSAL": sizes.causal,
        "FLAME_WIRING": sizes.wiring == "flame",
        "RELATIVE_BIAS": bias is not None,
        "REACH": bias.positions if bias else 1,
        "TIME_BUCKETS": bias.time_buckets if bias else 1,
        "SQUEEZED": max(1, width // sizes.gate_reduction),
        "EXPERTS": sizes.experts,
        "EXPERT_HIDDEN": sizes.expert_hidden,
        "EXPERT_DIM": sizes.expert_dim,
        "TOWER_HIDDEN": sizes.tower_hidden,
    }


def _hstu_constants(spec: ModelSpec, sizes: HstuConfig | None) -> dict[str, Constant]:
    assert sizes is not None
    value, attention = sizes.heads * sizes.linear_dim, sizes.heads * sizes.attention_dim
    return {
        "LAYERS": sizes.layers,
        "BLOCKS": 1,
        "DIM": sizes.dim,
        "HEADS": sizes.heads,
        "ATTENTION_DIM": sizes.attention_dim,
        "LINEAR_DIM": sizes.linear_dim,
        "KEY_WIDTH": attention,
        "VALUE_WIDTH": value,
        "ROW_PRODUCTS": sizes.dim * (5 * value + 2 * attention),
        "KEY_PRODUCTS": value + attention,
        "CAUSAL": sizes.causal,
        "TIME_GAPS": sizes.times == "gap",
        "RELATIVE_BIAS": False,
        "TIME_BUCKETS": sizes.time_buckets,
        "MAX_KEYS": spec.input.sequence_capacity(spec.input.max_history) + 1,
        "TOWER_HIDDEN": sizes.tower_hidden,
    }


def _input_constants(spec: ModelSpec) -> dict[str, Constant]:
    schema, record = spec.input, spec.record
    sizes = spec.climber or spec.hstu
    assert sizes is not None
    found: dict[str, Constant] = {
        "ITEM_DIM": schema.item_id.dim,
        "ITEM_VOCABULARY": schema.item_id.vocabulary,
        "HOST_LOOKUP": schema.item_id.lookup == "host",
        "ITEM_PROJECTION": schema.item_id.dim != sizes.dim,
        "ACTIONS": schema.actions,
        "OLDEST_FIRST": schema.positions == "oldest",
        "APPENDABLE": spec.appendable,
        "SIGMOID": [task.activation == "sigmoid" for task in spec.tasks],
        "HEADER_WORDS": record.header_words,
        "HEADER_PREFIX": record.prefix or 0,
        "USER_START": record.user_start,
        "CONTEXT_START": record.context_start,
        "EVENT_WORDS": record.event_words,
        "CANDIDATE_WORDS": record.candidate_words,
    }
    for name, row in (("ITEM", schema.item_row), ("USER", schema.user_row), ("CONTEXT", schema.context_row)):
        found |= _row_constants(name, row)
    return found


def _row_constants(name: str, row: RowLayout) -> dict[str, Constant]:
    vocabularies = [field.vocabulary for field in row.fields if field.vocabulary for _ in range(field.words)]
    return {
        f"{name}_INTEGERS": row.integer_words,
        f"{name}_FLOATS": row.float_words,
        f"{name}_OFFSETS": category_offsets(row),
        f"{name}_VOCABULARIES": vocabularies,
    }


def _input_names() -> list[str]:
    rows = [
        f"input.{row}_features.{part}"
        for row in ("item", "user", "context")
        for part in ("categories.weight", "dense.weight", "dense.bias")
    ]
    projection = ["input.item_projection.weight", "input.item_projection.bias"]
    return ["input.items.weight", *projection, *rows, "input.actions.weight", "input.positions.weight"]


def _climber_names(spec: ModelSpec) -> list[str]:
    assert spec.climber is not None
    bias = [f"relative_bias.{name}" for name in ("positions", "times", "scenario_scale")]
    layers = [name for layer in range(spec.climber.layers) for name in _layer_names(f"layers.{layer}")]
    gate = _pairs("fusion.squeeze", "fusion.excite")
    head = _pairs("head.experts_in", "head.experts_out", "head.gates", "head.towers.hidden", "head.towers.out")
    return [*bias, *layers, *_layer_names("fusion.layer"), *gate, *head]


def _layer_names(layer: str) -> list[str]:
    rest = _pairs(*(f"{layer}.{name}" for name in ("ffn_in", "ffn_out", "norm")))
    return [*_pairs(f"{layer}.qkv"), f"{layer}.log_temperature", *rest]


def _hstu_names(spec: ModelSpec) -> list[str]:
    assert spec.hstu is not None
    layers = [
        name
        for layer in range(spec.hstu.layers)
        for name in [
            *_pairs(*(f"layers.{layer}.{part}" for part in ("norm_in", "uvqk", "norm_out"))),
            f"layers.{layer}.out.weight",
        ]
    ]
    head = _pairs("norm", "head.hidden", "head.out")
    return ["times.weight", "scenarios.weight", *layers, *head]


def _pairs(*modules: str) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
