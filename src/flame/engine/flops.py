"""How many floating-point operations one user's request takes: as the paper counts, and as few as are needed.

Only matrix products count, two operations per multiply-add; softmax, norms, activations and look-ups do not. A model
of one's own has no formula here and raises `PackageError`.
"""

from __future__ import annotations

from typing import NamedTuple

from flame.engine.spec import ClimberConfig, HstuConfig, ModelSpec
from flame.errors import PackageError


class _Layer(NamedTuple):
    """Operations of one layer: for a row, for a row's keys and values alone, and for a pair of rows."""

    row: int
    keys_values: int
    pair: int


def dense_flops(spec: ModelSpec, history: int, candidates: int) -> int:
    """Operations of one request, unmasked attention and every row in every layer: how the paper's Table 2 counts."""
    layer = _layer(spec)
    total = candidates * _per_candidate(spec)
    for events in _events(spec, history):
        rows = events + candidates
        total += _layers(spec) * (rows * layer.row + rows * rows * layer.pair) + events * _per_token(spec)
    return total


def needed_flops(spec: ModelSpec, history: int, candidates: int) -> int:
    """Operations of one request without masked pairs, and with candidates alone in the last layer."""
    return needed_encode_flops(spec, history) + needed_score_flops(spec, history, candidates)


def needed_encode_flops(spec: ModelSpec, history: int) -> int:
    """Operations to encode a history of `history` events: the last layer gives keys and values only."""
    layer = _layer(spec)
    total = 0
    for events in _events(spec, history):
        pairs = events * (events + 1) // 2 if _causal(spec) else events * events
        total += events * _per_token(spec)
        total += (_layers(spec) - 1) * (events * layer.row + pairs * layer.pair) + events * layer.keys_values
    return total


def needed_score_flops(spec: ModelSpec, history: int, candidates: int) -> int:
    """Operations to score `candidates` against an encoded history: each sees its events and itself."""
    layer = _layer(spec)
    total = candidates * _per_candidate(spec)
    for events in _events(spec, history):
        total += _layers(spec) * candidates * (layer.row + (events + 1) * layer.pair)
    return total


def needed_stack_flops(spec: ModelSpec, history: int, candidates: int) -> int:
    """Those of `needed_flops` in the layers alone: without input stage, fusion and head."""
    ends = candidates * _per_candidate(spec) + sum(_events(spec, history)) * _per_token(spec)
    return needed_flops(spec, history, candidates) - ends


def _events(spec: ModelSpec, history: int) -> list[int]:
    """Events of each sequence when the history has `history` events and every strategy finds all it can keep."""
    return [sequence.capacity(history) for sequence in spec.input.sequences]


def _sizes(spec: ModelSpec) -> ClimberConfig | HstuConfig:
    sizes = spec.climber or spec.hstu
    if sizes is None:
        raise PackageError(
            f"model {spec.name!r} is a module of its own: its operations cannot be counted from the spec"
        )
    return sizes


def _layers(spec: ModelSpec) -> int:
    return _sizes(spec).layers


def _causal(spec: ModelSpec) -> bool:
    return _sizes(spec).causal


def _layer(spec: ModelSpec) -> _Layer:
    sizes = _sizes(spec)
    if isinstance(sizes, ClimberConfig):
        return _climber_layer(sizes)
    value, attention = sizes.heads * sizes.linear_dim, sizes.heads * sizes.attention_dim
    row = 2 * sizes.dim * (2 * value + 2 * attention) + 2 * 3 * value * sizes.dim
    return _Layer(row, 2 * sizes.dim * (value + attention), 2 * (value + attention))


def _climber_layer(sizes: ClimberConfig) -> _Layer:
    projection = 2 * sizes.dim * sizes.dim
    return _Layer(3 * projection + 4 * sizes.dim * sizes.ffn, 2 * projection, 4 * sizes.dim)


def _per_token(spec: ModelSpec) -> int:
    """Operations of the input stage for one event or candidate."""
    dim, table = _sizes(spec).dim, spec.input.item_id
    projection = 2 * table.dim * dim if table.dim != dim else 0
    return projection + 2 * dim * spec.input.item_row.float_words


def _per_candidate(spec: ModelSpec) -> int:
    """Operations for one candidate outside the layers: input stage, fusion and head."""
    tasks = len(spec.tasks)
    if spec.climber:
        return _per_token(spec) + _fusion(spec.climber, len(spec.input.sequences)) + _head(spec, spec.climber, tasks)
    sizes = _sizes(spec)
    return _per_token(spec) + 2 * tasks * sizes.tower_hidden * (sizes.dim + 1)


def _fusion(sizes: ClimberConfig, blocks: int) -> int:
    layer, width = _climber_layer(sizes), blocks * sizes.dim
    squeezed = max(1, width // sizes.gate_reduction)
    return blocks * layer.row + blocks * blocks * layer.pair + 4 * width * squeezed


def _head(spec: ModelSpec, sizes: ClimberConfig, tasks: int) -> int:
    width = len(spec.input.sequences) * sizes.dim
    experts = sizes.experts * sizes.expert_hidden * (width + sizes.expert_dim)
    gates = tasks * sizes.experts * (width + sizes.expert_dim)
    towers = tasks * sizes.tower_hidden * (sizes.expert_dim + 1)
    return 2 * (experts + gates + towers)
