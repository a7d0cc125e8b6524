"""What the experts, gates and towers of one model take of memory: stages of weights, in the order in which they go."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flame.engine.kernels.climber_head.stages import fp32, matrix
from flame.engine.kernels.experts.sizes import ExpertSizes

EXPERTS = 8
DIM = 64
CHUNK = 64
PAIR = 2 * CHUNK
"""Hidden units of which the outputs are one sum."""


def hidden_units(sizes: ExpertSizes) -> int:
    """Of an expert, padded to whole pairs of chunks."""
    return -(-sizes.hidden // PAIR) * PAIR


def stages(sizes: ExpertSizes, own: Mapping[str, Tensor]) -> Tensor:
    """uint8, from the fp32 tensors of an expert head by its own names."""
    return torch.cat([*_experts(sizes, own), *_gates(sizes, own), *_towers(sizes, own)])


def _experts(sizes: ExpertSizes, own: Mapping[str, Tensor]) -> list[Tensor]:
    """Chunk after chunk of every expert: first product and its biases, second product and what its sum starts from."""
    hidden = hidden_units(sizes)
    first = _sized(own["experts_in.weight"], hidden, sizes.inputs)
    first_bias = _sized(own["experts_in.bias"], EXPERTS, hidden)
    second = _sized(own["experts_out.weight"], DIM, hidden)
    second_bias = _sized(own["experts_out.bias"], EXPERTS, DIM)
    parts = []
    for expert in range(EXPERTS):
        for start in range(0, hidden, CHUNK):
            units = slice(start, start + CHUNK)
            parts += [matrix(first[expert, units]), fp32(first_bias[expert, units])]
            parts += [matrix(second[expert, :, units]), fp32(second_bias[expert] * (start == 0))]
    return parts


def _gates(sizes: ExpertSizes, own: Mapping[str, Tensor]) -> list[Tensor]:
    """8 columns a task."""
    weight, bias = own["gates.weight"].reshape(-1, sizes.inputs), own["gates.bias"].reshape(1, -1)
    return [matrix(_sized(weight, CHUNK, sizes.inputs)), fp32(_sized(bias, 1, CHUNK))]


def _towers(sizes: ExpertSizes, own: Mapping[str, Tensor]) -> list[Tensor]:
    """Of a task the first product, its biases, the output weights and bias."""
    hidden = _sized(own["towers.hidden.weight"], DIM, DIM)
    bias, out = own["towers.hidden.bias"], own["towers.out.weight"].reshape(sizes.tasks, -1)
    parts = []
    for task in range(sizes.tasks):
        vectors = (_sized(vector[task : task + 1], 1, DIM) for vector in (bias, out))
        last = _sized(own["towers.out.bias"].reshape(-1, 1)[task : task + 1], 1, 4)
        parts += [matrix(hidden[task]), *map(fp32, (*vectors, last))]
    return parts


def _sized(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros behind the last two dimensions, up to these sizes."""
    return torch.nn.functional.pad(tensor, (0, columns - tensor.shape[-1], 0, rows - tensor.shape[-2]))
