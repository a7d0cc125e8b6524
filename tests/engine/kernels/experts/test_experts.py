"""Experts, gates and towers: against their definition and the model's own, with NaN around."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flame.engine.backends.fused.precision import PRECISIONS, Precision
from flame.engine.kernels.experts import ExpertHead, ExpertSizes, ExpertTile
from flame.engine.kernels.experts.reference import head_scores
from flame.engine.kernels.kernel import Runtime
from flame.engine.models import head
from flame.engine.spec import Task

HEADER = 4
TOLERANCES = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}
SMALL = ExpertTile(16, 4, 2)

SIZES = {
    "tiny": ExpertSizes(48, 3, 20, 12, 10, (True, True, True), HEADER),
    "one of everything": ExpertSizes(7, 1, 5, 3, 2, (False,), HEADER),
    "chunks": ExpertSizes(40, 5, 75, 20, 70, (True, False), HEADER, most_chunk=32),
    "many experts": ExpertSizes(24, 18, 16, 70, 9, (True, False, True), HEADER),
    "wide inputs": ExpertSizes(600, 2, 40, 16, 16, (True,), HEADER, most_chunk=16),
    "odd pieces": ExpertSizes(192, 3, 65, 16, 16, (False, True), HEADER, most_chunk=32),
}


def module(sizes: ExpertSizes) -> head.ExpertHead:
    torch.manual_seed(2)
    made = head.ExpertHead(sizes.inputs, sizes.tasks, sizes.experts, sizes.hidden, sizes.dim, sizes.tower_hidden)
    for parameter in made.parameters():
        parameter.data *= 1.5
    return made.requires_grad_(False)


def random_rows(sizes: ExpertSizes, counts: Sequence[int], precision: Precision) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(count, sizes.inputs).to(precision.dtype) for count in counts]


def launch(
    sizes: ExpertSizes,
    rows: Sequence[Tensor],
    candidates: int,
    runtime: Runtime,
    precision: Precision,
) -> Tensor:
    """Scores `[users, candidates, tasks]`, NaN wherever nothing was to be read or written."""
    op = ExpertHead(sizes, precision.pointer, tile=SMALL)
    weights = op.pack(module(sizes).state_dict(), precision.dtype, runtime.device)
    room = -(-candidates // 64) * 64
    shape = (len(rows), room, sizes.inputs)
    wide = torch.full(shape, float("nan"), dtype=precision.dtype, device=runtime.device)
    words = torch.full((len(rows), HEADER), 2**30, dtype=torch.int32)
    for user, own in enumerate(rows):
        wide[user, : len(own)] = own.to(runtime.device)
        words[user, 1] = len(own)
    work = op.work(len(rows), room, runtime.device)
    for tensor in work:
        tensor.fill_(float("nan"))
    scores = torch.full((len(rows), candidates, sizes.tasks), float("nan"), device=runtime.device)
    op.launch(runtime, weights, work, words.flatten().to(runtime.device), wide, scores)
    return scores.cpu()


@pytest.mark.parametrize("name", SIZES)
def test_scores_are_those_of_the_definition(name: str, runtime: Runtime, precision: Precision) -> None:
    sizes, counts = SIZES[name], [19, 0, 1]
    rows = random_rows(sizes, counts, precision)
    scores = launch(sizes, rows, 21, runtime, precision)
    weights = module(sizes).state_dict()
    tolerance = TOLERANCES[precision.name]
    for user, count in enumerate(counts):
        expected = head_scores(weights, sizes.sigmoids, rows[user].float())
        torch.testing.assert_close(scores[user, :count], expected, rtol=tolerance, atol=tolerance)
        assert scores[user, count:].isnan().all()


@pytest.mark.parametrize("name", SIZES)
def test_scores_are_those_of_the_model(name: str, runtime: Runtime) -> None:
    sizes, precision = SIZES[name], PRECISIONS["fp32"]
    rows = random_rows(sizes, [17], precision)
    scores = launch(sizes, rows, 17, runtime, precision)
    tasks = [Task(str(place), "sigmoid" if has else "identity") for place, has in enumerate(sizes.sigmoids)]
    expected = head.activate(module(sizes)(rows[0][None]), tasks)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "chunks", "many experts"])
def test_a_candidate_has_the_same_bits_wherever_it_stands(name: str, runtime: Runtime, precision: Precision) -> None:
    sizes = SIZES[name]
    rows = random_rows(sizes, [2, 40], precision)
    many = launch(sizes, rows, 40, runtime, precision)
    order = [39, 0, 17]
    few = launch(sizes, [rows[1][order]], 5, runtime, precision)
    assert torch.equal(few[0, :3], many[1, order])
