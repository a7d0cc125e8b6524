"""Experts, gates and towers in one CUDA launch: against their definition, in all configurations, with NaN around."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flame.engine.kernels.climber_head import ClimberExperts, experts_fit
from flame.engine.kernels.climber_head.experts import ExpertTile, tiles
from flame.engine.kernels.experts.reference import head_scores
from flame.engine.kernels.experts.sizes import ExpertSizes
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.models import head
from tests.engine.kernels.climber_head.lanes import lane_order

HEADER = 4
SIZES = {
    "padded": ExpertSizes(32, 8, 100, 40, 50, (True, False, True), HEADER),
    "one task": ExpertSizes(64, 8, 300, 64, 64, (False,), HEADER, count_word=3),
    "as served": ExpertSizes(192, 8, 512, 64, 64, (True,) * 4, HEADER),
}


def module(sizes: ExpertSizes) -> head.ExpertHead:
    torch.manual_seed(2)
    made = head.ExpertHead(sizes.inputs, sizes.tasks, sizes.experts, sizes.hidden, sizes.dim, sizes.tower_hidden)
    for parameter in made.parameters():
        parameter.data *= 1.5
    return made.requires_grad_(False)


def random_rows(sizes: ExpertSizes, counts: Sequence[int]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(count, sizes.inputs).bfloat16() for count in counts]


def launch(sizes: ExpertSizes, rows: Sequence[Tensor], candidates: int, machine: Runtime, tile: ExpertTile) -> Tensor:
    """Scores `[users, candidates, tasks]`, NaN wherever nothing was to be read or written."""
    op = ClimberExperts(sizes, tile=tile)
    weights = op.pack(module(sizes).state_dict(), torch.bfloat16, machine.device)
    room = -(-candidates // 64) * 64
    shape = (len(rows), room, sizes.inputs)
    wide = torch.full(shape, float("nan"), dtype=torch.bfloat16, device=machine.device)
    order = lane_order(sizes.inputs)
    words = torch.full((len(rows), HEADER), 2**30, dtype=torch.int32)
    for user, own in enumerate(rows):
        wide[user, : len(own)] = own[:, order].to(machine.device)
        words[user, sizes.count_word] = len(own)
    scores = torch.full((len(rows), candidates, sizes.tasks), float("nan"), device=machine.device)
    work = op.work(len(rows), room, machine.device)
    work.fill_(float("nan"))
    op.launch(machine, weights, work, words.flatten().to(machine.device), wide, scores)
    return scores.cpu()


SMALL = [("padded", tile) for tile in tiles(SIZES["padded"])] + [
    ("one task", tile) for tile in tiles(SIZES["one task"])[::2]
]
"""Each takes a build: all tiles with padding in every size, and every other one where nothing is padded."""


@pytest.mark.parametrize(("name", "tile"), SMALL)
def test_scores_are_those_of_the_definition(name: str, tile: ExpertTile, machine: Runtime) -> None:
    sizes, counts = SIZES[name], [70, 0, 1]
    rows = random_rows(sizes, counts)
    scores = launch(sizes, rows, 71, machine, tile)
    weights = module(sizes).state_dict()
    for user, count in enumerate(counts):
        expected = head_scores(weights, sizes.sigmoids, rows[user].float())
        torch.testing.assert_close(scores[user, :count], expected, rtol=1e-2, atol=1e-2)
        assert scores[user, count:].isnan().all()


def test_sizes_that_are_served(machine: Runtime) -> None:
    sizes = SIZES["as served"]
    rows = random_rows(sizes, [33])
    expected = head_scores(module(sizes).state_dict(), sizes.sigmoids, rows[0].float())
    for tile in tiles(sizes)[::3]:
        torch.testing.assert_close(launch(sizes, rows, 33, machine, tile)[0], expected, rtol=1e-2, atol=1e-2)


def test_a_candidate_has_the_same_bits_wherever_it_stands(machine: Runtime) -> None:
    sizes = SIZES["padded"]
    rows = random_rows(sizes, [3, 100])
    *others, last = tiles(sizes)
    many = launch(sizes, rows, 100, machine, last)
    order = [99, 0, 17]
    for tile in others:
        few = launch(sizes, [rows[1][order]], 5, machine, tile)
        assert torch.equal(few[0, :3], many[1, order])


def test_as_many_share_the_experts_as_fill_the_machine() -> None:
    sizes = SIZES["as served"]
    op, launched = ClimberExperts(sizes), []

    class Noting:
        device = torch.device("cpu")

        def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: object) -> None:
            launched.append((kernel.name, grid))

    for users, candidates in ((1, 128), (1, 512), (8, 128), (8, 512), (32, 512)):
        wide, scores = torch.empty(users, candidates, 192).bfloat16(), torch.empty(users, candidates, 4)
        work = op.work(users, candidates, Noting.device)
        op.launch(Noting(), torch.empty(0), work, torch.empty(0), wide, scores)
    assert launched == [
        ("climber-experts-1-32", (64,)),
        ("climber-towers-4", (8,)),
        ("climber-experts-1-16", (128,)),
        ("climber-towers-4", (32,)),
        ("climber-experts-1-8", (128,)),
        ("climber-towers-1", (64,)),
        ("climber-experts-2-4", (128,)),
        ("climber-towers-1", (256,)),
        ("climber-experts-2-1", (128,)),
    ]


def test_other_sizes_are_for_other_kernels() -> None:
    right = SIZES["as served"]
    assert all(experts_fit(sizes) for sizes in SIZES.values())
    for change in ({"experts": 4}, {"inputs": 48}, {"inputs": 224}, {"dim": 80}, {"sigmoids": (True,) * 5}):
        assert not experts_fit(right._replace(**change))
