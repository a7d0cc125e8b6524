"""Final norm and towers: against their definition and the model's own, with NaN around."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from flame.engine.backends.fused.precision import PRECISIONS, Precision
from flame.engine.kernels.kernel import Runtime
from flame.engine.kernels.towers import NormedTowers, TowerSizes
from flame.engine.kernels.towers.reference import normed_scores
from flame.engine.models import Hstu, create, head
from flame.engine.presets import preset, random_weights

HEADER = 6
FIRST = 128
TOLERANCES = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}

SIZES = {
    "tiny": TowerSizes(24, 12, (True, True, True), HEADER),
    "one of everything": TowerSizes(9, 1, (False,), HEADER),
    "odd dim": TowerSizes(100, 20, (True, False), HEADER),
    "several chunks": TowerSizes(130, 300, (False, True), HEADER, eps=1e-3),
}


def random_tensors(sizes: TowerSizes) -> dict[str, Tensor]:
    torch.manual_seed(3)
    towers = head.Towers(sizes.tasks, sizes.dim, sizes.hidden).state_dict()
    norm = {"norm.weight": 1 + 0.2 * torch.randn(sizes.dim), "norm.bias": 0.1 * torch.randn(sizes.dim)}
    return norm | {f"head.{name}": 1.5 * tensor for name, tensor in towers.items()}


def random_rows(sizes: TowerSizes, counts: Sequence[int], precision: Precision) -> list[Tensor]:
    """Rows with a mean of their own, far from 0."""
    torch.manual_seed(0)
    return [(3 + torch.randn(count, sizes.dim)).to(precision.dtype) for count in counts]


def launch(
    sizes: TowerSizes,
    weights: dict[str, Tensor],
    rows: Sequence[Tensor],
    candidates: int,
    runtime: Runtime,
    precision: Precision,
) -> Tensor:
    """Scores `[users, candidates, tasks]`, NaN wherever nothing was to be read or written."""
    op = NormedTowers(sizes, precision.pointer)
    packed = op.pack(weights, precision.dtype, runtime.device)
    shape = (len(rows), 1, FIRST + candidates + 3, sizes.dim)
    x = torch.full(shape, float("nan"), dtype=precision.dtype, device=runtime.device)
    words = torch.full((len(rows), HEADER), 2**30, dtype=torch.int32)
    for user, own in enumerate(rows):
        x[user, 0, FIRST : FIRST + len(own)] = own.to(runtime.device)
        words[user, 1] = len(own)
    scores = torch.full((len(rows), candidates, sizes.tasks), float("nan"), device=runtime.device)
    op.launch(runtime, packed, words.flatten().to(runtime.device), x, FIRST, scores)
    return scores.cpu()


@pytest.mark.parametrize("name", SIZES)
def test_scores_are_those_of_the_definition(name: str, runtime: Runtime, precision: Precision) -> None:
    sizes, counts = SIZES[name], [70, 0, 1]
    weights, rows = random_tensors(sizes), random_rows(sizes, counts, precision)
    scores = launch(sizes, weights, rows, 75, runtime, precision)
    tolerance = TOLERANCES[precision.name]
    for user, count in enumerate(counts):
        expected = normed_scores(weights, sizes.sigmoids, sizes.eps, rows[user].float())
        torch.testing.assert_close(scores[user, :count], expected, rtol=tolerance, atol=tolerance)
        assert scores[user, count:].isnan().all()


@pytest.mark.parametrize("name", ["tiny-hstu", "tiny-hstu-bidirectional"])
def test_scores_are_those_of_the_model(name: str, runtime: Runtime) -> None:
    spec, precision = preset(name), PRECISIONS["fp32"]
    model, weights = create(spec), random_weights(spec, 5)
    assert isinstance(model, Hstu)
    model.load_state_dict(weights)
    assert spec.hstu is not None
    sizes = TowerSizes(spec.hstu.dim, spec.hstu.tower_hidden, (True,) * 3, HEADER)
    rows = random_rows(sizes, [17], precision)
    own = {key: tensor for key, tensor in weights.items() if key.startswith(("norm.", "head."))}
    scores = launch(sizes, own, rows, 17, runtime, precision)
    with torch.no_grad():
        expected = head.activate(model._logits(rows[0][None]), spec.tasks)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "several chunks"])
def test_a_candidate_has_the_same_bits_wherever_it_stands(name: str, runtime: Runtime, precision: Precision) -> None:
    sizes = SIZES[name]
    weights, rows = random_tensors(sizes), random_rows(sizes, [3, 66], precision)
    many = launch(sizes, weights, rows, 66, runtime, precision)
    order = [65, 0, 64]
    few = launch(sizes, weights, [rows[1][order]], 4, runtime, precision)
    assert torch.equal(few[0, :3], many[1, order])


def test_norm_is_the_models() -> None:
    """The reference's norm is PyTorch's."""
    sizes = TowerSizes(11, 2, (False,), HEADER)
    weights, rows = random_tensors(sizes), random_rows(sizes, [5], PRECISIONS["fp32"])
    normal = nn.functional.layer_norm(rows[0], (11,), weights["norm.weight"], weights["norm.bias"], sizes.eps)
    hidden = torch.relu(normal @ weights["head.hidden.weight"][0].T + weights["head.hidden.bias"][0])
    expected = hidden @ weights["head.out.weight"][0].T + weights["head.out.bias"][0]
    torch.testing.assert_close(normed_scores(weights, sizes.sigmoids, sizes.eps, rows[0]), expected)
