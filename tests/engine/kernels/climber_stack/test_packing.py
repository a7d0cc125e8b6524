"""Weights in the order of the tensor cores, and which configuration a launch takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flame.engine.kernels.climber_stack import StackSizes, unsupported
from flame.engine.kernels.climber_stack.packing import columns_first, pack, steps_first
from flame.engine.kernels.climber_stack.variants import VARIANTS, choose, possible

SIZES = [
    StackSizes(layers=2, blocks=2, heads=3, dim=96, ffn=384, scenarios=3),
    StackSizes(layers=1, blocks=3, heads=2, dim=64, ffn=96, scenarios=1),
    StackSizes(layers=1, blocks=1, heads=1, dim=32, ffn=80, scenarios=2),
]
BASE = SIZES[0]


def test_columns_first_makes_matrices_along_the_sum() -> None:
    matrix = torch.arange(96 * 16, dtype=torch.float32).remainder(251).reshape(1, 96, 16)
    packed = columns_first(matrix).view(torch.bfloat16).reshape(2, 12, 8, 8).float()
    for tile in range(2):
        for step in range(12):
            expected = matrix[0, 8 * step : 8 * step + 8, 8 * tile : 8 * tile + 8].T
            assert torch.equal(packed[tile, step], expected)


def test_steps_first_makes_matrices_along_the_columns() -> None:
    matrix = torch.arange(48 * 32, dtype=torch.float32).remainder(251).reshape(1, 48, 32)
    packed = steps_first(matrix).view(torch.bfloat16).reshape(3, 4, 2, 8, 8).float()
    for step in range(3):
        for tile in range(4):
            for half in (0, 1):
                rows = slice(16 * step + 8 * half, 16 * step + 8 * half + 8)
                assert torch.equal(packed[step, tile, half], matrix[0, rows, 8 * tile : 8 * tile + 8].T)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{sizes.heads}x32-{sizes.ffn}")
def test_a_layer_holds_every_weight_once(sizes: StackSizes, stack_weights: Callable[..., dict[str, Tensor]]) -> None:
    weights = stack_weights(sizes)
    packed = pack(sizes, weights)
    assert packed.weights.shape == (sizes.layers, sizes.blocks, sizes.layer_bytes)
    head = packed.weights[-1, -1, : sizes.ffn_start].reshape(sizes.heads, -1)[-1]
    last = f"layers.{sizes.layers - 1}."
    bias = weights[last + "qkv.bias"][-1].reshape(3, sizes.heads, 32)[:, -1]
    assert torch.equal(head[64 * sizes.dim :][:128].clone().view(torch.float32), bias[0])
    assert torch.equal(head[-256:].clone().view(torch.float32), bias[1:].flatten())
    stage = sizes.ffn_start + (sizes.ffn_stages - 1) * sizes.ffn_stride + sizes.ffn_bytes
    tail = packed.weights[-1, -1, stage:][: sizes.norm_bytes].clone().view(torch.float32)
    names = ("ffn_out.bias", "norm.weight", "norm.bias")
    assert torch.equal(tail, torch.cat([weights[last + name][-1] for name in names]))
    logarithm = weights[last + "log_temperature"][-1, -1].item()
    assert packed.scales[-1, -1, -1].item() == pytest.approx(math.log2(math.e) / math.exp(logarithm))


def test_what_is_not_supported_is_said() -> None:
    assert unsupported(BASE) is None
    assert "heads of 48" in str(unsupported(BASE._replace(heads=2)))
    assert "5 heads" in str(unsupported(BASE._replace(heads=5, dim=160)))
    assert "ffn 100" in str(unsupported(BASE._replace(ffn=100)))


def test_waiting_ctas_of_all_launches_never_fill_the_gpu() -> None:
    for concurrent in (1, 2, 4, 8):
        for events in (128, 512, 1024, 4096):
            for variant in possible(BASE, "rank", events, 132, concurrent):
                assert concurrent * (-(-events // variant.rows) - 1) < 132
    assert possible(BASE, "score", 1 << 20, 132, 8) == VARIANTS


def test_small_launches_take_few_rows_a_cta_and_large_ones_many() -> None:
    def name(users: int, events: int, candidates: int) -> str:
        variants = possible(BASE, "rank", events, 132, 4)
        return choose(variants, "rank", 2 * users, events, candidates, 132).name

    assert [name(users, 256, 128) for users in (1, 8, 32)] == ["team-16", "wide-64", "wide-192"]
    assert [name(users, 512, 512) for users in (1, 8, 32)] == ["team-16", "wide-128", "wide-128"]
    assert name(4, 256, 128) == "team-32"
