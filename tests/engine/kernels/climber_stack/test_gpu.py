"""What only a real GPU can show: launches side by side, captured and replayed, at the sizes that are served."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flame.engine.kernels.climber_stack import StackSizes
from flame.engine.kernels.climber_stack.variants import VARIANTS

pytestmark = pytest.mark.gpu

SIZES = StackSizes(layers=12, blocks=2, heads=3, dim=96, ffn=384, scenarios=3)
SHAPES = {
    "one-user": ([[256, 250]], [128]),
    "eight-users": ([[512 - 17 * u, 40 * u] for u in range(8)], [512 - u for u in range(8)]),
}


@pytest.fixture(params=SHAPES)
def bed(request: pytest.FixtureRequest, make_gpu_bed: Any) -> Any:
    lengths, counts = SHAPES[request.param]
    return make_gpu_bed(lengths, counts, events=512, candidates=512, sizes=SIZES)


def test_equal_to_the_reference_and_bit_for_bit_in_every_variant(bed: Any) -> None:
    first = bed.launch("rank", VARIANTS[0])
    expected = bed.expected()
    found, right = (torch.cat([rows.float().flatten() for rows in parts]) for parts in (first, expected))
    assert (found - right).norm() / right.norm() < 2.5e-2
    for variant in VARIANTS[1:]:
        bed.new_states()
        again = bed.launch("rank", variant)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), variant.name


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_replays_are_stable(bed: Any, variant: Any) -> None:
    expected = bed.launch("rank", variant)
    x, graph = bed.x.clone(), torch.cuda.CUDAGraph()
    header = bed.header()
    with torch.cuda.graph(graph):
        bed.put("rank", variant, x, header)
    for _ in range(200):
        x.copy_(bed.x)
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(bed.live(x), expected, strict=True))


def test_two_streams_at_once(make_gpu_bed: Any) -> None:
    lengths, counts = SHAPES["eight-users"]
    beds = [make_gpu_bed(lengths, counts, events=512, candidates=512, sizes=SIZES, seed=seed) for seed in (1, 2, 3, 4)]
    expected = [bed.launch() for bed in beds]
    headers, streams = [bed.header() for bed in beds], [torch.cuda.Stream() for _ in beds]
    torch.cuda.synchronize()
    for turn in range(50):
        outputs = [bed.x.clone() for bed in beds]
        torch.cuda.synchronize()
        for bed, stream, header, x in zip(beds, streams, headers, outputs, strict=True):
            with torch.cuda.stream(stream):
                bed.put("rank", VARIANTS[turn % len(VARIANTS)], x, header)
        torch.cuda.synchronize()
        for bed, x, right in zip(beds, outputs, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(bed.live(x), right, strict=True))
