"""The launches: equal to the reference, and a candidate's bits whatever else is in a launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from flame.engine.kernels.climber_stack import StackSizes
from flame.engine.kernels.climber_stack.packing import read_state
from flame.engine.kernels.climber_stack.reference import encode
from flame.engine.kernels.climber_stack.variants import VARIANTS

MakeBed = Callable[..., Any]

LENGTHS = ((37, 128), (0, 16), (1, 95), (0, 0))
COUNTS = (20, 1, 40, 0)
NAMED = {variant.name: variant for variant in VARIANTS}


def error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    a, b = (torch.cat([rows.float().flatten() for rows in parts]) for parts in (found, expected))
    return float((a - b).norm() / b.norm())


def typical_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Of the median row: where two keys are level, rounding alone decides, and single rows go far."""
    rows = [(a.float() - b.float()).norm(dim=-1) / b.float().norm(dim=-1) for a, b in zip(found, expected, strict=True)]
    return float(torch.cat([one.flatten() for one in rows]).median())


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", NAMED)
def test_rank_is_the_reference_for_odd_lengths_and_counts(make_bed: MakeBed, name: str) -> None:
    bed = make_bed(LENGTHS, COUNTS, capacity=256)
    assert error(bed.launch("rank", NAMED[name]), bed.expected()) < 8e-3


@pytest.mark.slow
def test_every_variant_gives_the_same_bits(make_bed: MakeBed) -> None:
    bed = make_bed(((37, 128),), (20,))
    first = bed.launch("rank", VARIANTS[0])
    for variant in VARIANTS[1:]:
        bed.new_states()
        assert same(bed.launch("rank", variant), first), variant.name


@pytest.mark.parametrize(
    ("before", "after"), [("team-16", "wide-64"), ("wide-64", "wide-128"), ("wide-192", "team-32")]
)
def test_two_steps_give_the_bits_of_one(make_bed: MakeBed, before: str, after: str) -> None:
    bed = make_bed(((37, 128), (0, 0)), (20, 3), capacity=384)
    ranked = bed.launch("rank", NAMED[before])
    bed.new_states()
    bed.launch("encode", NAMED[after])
    assert same(bed.launch("score", NAMED[before]), ranked)
    assert same(bed.launch("score", NAMED[after]), ranked)


@pytest.mark.parametrize("name", ["team-16", "wide-64"])
def test_states_hold_the_keys_and_values_of_the_reference(make_bed: MakeBed, name: str) -> None:
    bed = make_bed(LENGTHS, COUNTS)
    bed.launch("encode", NAMED[name])
    keys, values = read_state(bed.sizes, bed.memory[2].view(torch.uint8))
    for block, length in enumerate(LENGTHS[2]):
        history = encode(bed.sizes, bed.weights, bed.x[2, block, :length].float(), block, bed.scenarios[2])
        assert error([keys[:, block, :, :length]], [history.keys]) < 8e-3
        assert error([values[:, block, :, :length]], [history.values]) < 8e-3


def test_bits_do_not_depend_on_order_split_slot_or_company(make_bed: MakeBed) -> None:
    bed = make_bed(LENGTHS, COUNTS)
    ranked = bed.launch()
    order = torch.randperm(COUNTS[2])
    shuffled = bed.x.clone()
    shuffled[2, :, 128:168] = bed.x[2, :, 128:168][:, order]
    assert torch.equal(bed.launch(x=shuffled)[2], ranked[2][:, order])
    fewer = make_bed(LENGTHS[:1], (7,), events=256, candidates=64)
    assert torch.equal(fewer.launch()[0], ranked[0][:, :7])
    moved = make_bed((LENGTHS[0], LENGTHS[2]), (3, COUNTS[2]), candidates=128)
    moved.x[0, :, 128:131] = bed.x[0, :, 128 + 9 : 128 + 12]
    moved.x[1, :, :] = float("nan")
    moved.x[1, :, :192] = bed.x[2]
    moved.scenarios = [0, 2]
    found = moved.launch()
    assert torch.equal(found[0], ranked[0][:, 9:12])
    assert torch.equal(found[1], ranked[2])


def test_rows_that_are_not_live_are_left(make_bed: MakeBed) -> None:
    bed = make_bed(LENGTHS, COUNTS)
    x = bed.x.clone()
    bed.launch(x=x)
    for user, count in enumerate(COUNTS):
        assert x[user, :, 128 + count :].isnan().all()


@pytest.mark.parametrize(("scale", "gain"), [(30.0, 1.0), (1.0, 8.0)])
def test_large_logits_are_no_worse_than_in_eager_bf16(make_bed: MakeBed, scale: float, gain: float) -> None:
    bed = make_bed(LENGTHS[:1], COUNTS[:1], scale=scale, gain=gain)
    expected = bed.expected()
    first = bed.launch("rank", NAMED["team-16"])
    assert all(rows.isfinite().all() for rows in first)
    eager = typical_error(bed.expected(torch.bfloat16), expected)
    assert typical_error(first, expected) < 1.5 * eager + 4e-3
    for other in ("team-32", "wide-128", "wide-192"):
        bed.new_states()
        assert same(bed.launch("rank", NAMED[other]), first), other


@pytest.mark.parametrize("length", [1, 16, 63, 65, 127, 192, 256])
def test_any_length_of_history_in_whole_and_half_pieces(make_bed: MakeBed, length: int) -> None:
    """States of 16 rows a strip, so that what is behind them is NaN, and of 64 rows a strip.

    The other block has the rest of 256 events: 255, 240, 193, 191, 129, 64 and none.
    """
    bed = make_bed(((length, 256 - length),), (9,), events=256)
    first = bed.launch("rank", NAMED["team-16"])
    assert error(first, bed.expected()) < 8e-3
    assert same(bed.launch("score", NAMED["wide-64"]), first)
    for other in ("wide-128", "wide-192"):
        bed.new_states()
        assert same(bed.launch("rank", NAMED[other]), first), other


@pytest.mark.parametrize("slot", [5, 100])
def test_one_key_far_above_all_others(make_bed: MakeBed, slot: int) -> None:
    """Its logits leave fp32's range by far, before or after shifts are chosen; rows beside it keep their bits."""
    bed = make_bed(((16, 0), (37, 101)), (2, 33))
    bed.x[1, 1, slot] = 60 * torch.randn(96, generator=torch.Generator().manual_seed(4)).to(bed.x)
    expected = bed.expected()
    first = bed.launch("rank", NAMED["team-16"])
    assert all(rows.isfinite().all() for rows in first)
    eager = typical_error(bed.expected(torch.bfloat16), expected)
    assert typical_error(first, expected) < 1.5 * eager + 4e-3
    for other in ("team-32", "wide-64", "wide-192"):
        bed.new_states()
        assert same(bed.launch("rank", NAMED[other]), first), other
    bed.x[1, 0, 128:] = bed.x[1, 1, 128:] = bed.x[1, 1, 128:].roll(3, 0)
    bed.x[1, :, 128 + 33 :] = float("nan")
    bed.x[1, :, 128:131] = 0.5
    turned = bed.launch("rank", NAMED["team-16"])
    assert torch.equal(turned[1][1, 3:], first[1][1, :30])


def test_scratch_serves_launch_after_launch(make_bed: MakeBed) -> None:
    bed = make_bed(LENGTHS[:2], COUNTS[:2])
    first = bed.launch()
    for mode in ("encode", "score", "rank", "rank"):
        found = bed.launch(mode)
        assert mode == "encode" or same(found, first)
    bed.lengths = ((64, 3), (128, 0))
    bed.x = bed.x.nan_to_num(0.25)
    bed.new_states()
    assert error(bed.launch(), bed.expected()) < 8e-3


@pytest.mark.parametrize(("heads", "ffn", "other"), [(1, 64, "wide-64"), (2, 256, "wide-128"), (1, 80, "wide-192")])
def test_other_sizes(make_bed: MakeBed, heads: int, ffn: int, other: str) -> None:
    sizes = StackSizes(layers=2, blocks=1, heads=heads, dim=32 * heads, ffn=ffn, scenarios=1)
    bed = make_bed(((21,), (128,)), (17, 33), sizes=sizes)
    expected = bed.expected()
    first = bed.launch("rank", VARIANTS[0])
    assert error(first, expected) < 8e-3
    bed.new_states()
    assert same(bed.launch("rank", NAMED[other]), first)
