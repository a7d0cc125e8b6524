"""FLOP counts: the presets against the paper's Table 2, the formulas against what PyTorch really multiplies."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flame.engine.flops import dense_flops, needed_encode_flops, needed_flops, needed_score_flops
from flame.engine.presets import preset
from flame.engine.spec import Profile
from flame.errors import PackageError


@pytest.mark.parametrize(
    ("name", "history", "candidates", "paper"),
    [("flame-base", 512, 128, 3.72e9), ("flame-long", 1024, 512, 1.64e10)],
)
def test_the_presets_agree_with_table_2_within_five_percent(name, history, candidates, paper) -> None:
    assert dense_flops(preset(name), history, candidates) == pytest.approx(paper, rel=0.05)


@pytest.mark.parametrize(
    ("name", "head"), [("flame-base", 2.5e6), ("flame-long", 2.5e6)], ids=["flame-base", "flame-long"]
)
def test_fusion_and_head_take_about_two_and_a_half_megaflops_per_candidate(name, head) -> None:
    """What is left for a candidate without layers: a history of nothing, less its twelve layers in both blocks."""
    spec = preset(name)
    layers = 2 * 12 * (2 * 96 * (3 * 96 + 2 * 384) + 4 * 96)
    assert needed_score_flops(spec, 0, 1) - layers == pytest.approx(head, rel=0.05)


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def user_and_context(spec, users: int) -> int:
    """Products of the header's rows, once per user; the formulas leave them out."""
    dim = (spec.climber or spec.hstu).dim
    return users * 2 * dim * (spec.input.user_row.float_words + spec.input.context_row.float_words)


@pytest.mark.parametrize("name", ["tiny-climber", "tiny-climber-causal", "tiny-climber-own-wiring", "tiny-hstu"])
def test_the_dense_count_is_what_the_eager_model_multiplies(name, make_model, make_inputs) -> None:
    spec = preset(name)
    full = tuple(sequence.capacity(12) for sequence in spec.input.sequences)
    model = make_model(spec)
    inputs = make_inputs(spec, [full], [9], profile=Profile(1, 12, 9))
    assert counted(lambda: model.rank(inputs)) == dense_flops(spec, 12, 9) + user_and_context(spec, 1)


@pytest.mark.parametrize("name", ["tiny-climber", "tiny-hstu-bidirectional"])
def test_needed_counts_are_what_two_steps_multiply_apart_from_the_last_layer(name, make_model, make_inputs) -> None:
    spec = preset(name)
    history, candidates = 12, 9
    events = spec.input.sequence_capacity(history)
    sequences = len(spec.input.sequences)
    model = make_model(spec)
    inputs = make_inputs(spec, [(events,) * sequences], [candidates], profile=Profile(1, history, candidates))
    state = model.encode(inputs)
    sizes = spec.climber or spec.hstu
    pair = 4 * 24 if spec.climber else 2 * 2 * (10 + 14)
    own_pairs = sizes.layers * sequences * candidates * pair
    scored = counted(lambda: model.score(state, inputs)) - user_and_context(spec, 1)
    assert scored + own_pairs == needed_score_flops(spec, history, candidates), "a candidate's own pair is elementwise"
    not_needed = 2 * 24 * (24 if spec.climber else 2 * 14 + 2 * 10) * events * sequences
    assert counted(lambda: model.encode(inputs)) - not_needed == needed_encode_flops(spec, history)


def test_a_causal_history_needs_half_of_the_pairs() -> None:
    bidirectional, causal = preset("tiny-climber"), preset("tiny-climber-causal")
    events, blocks, layers = 19, 2, 2
    saved = blocks * layers * (events**2 - events * (events + 1) // 2) * 4 * 24
    assert needed_flops(bidirectional, 37, 9) - needed_flops(causal, 37, 9) == saved
    assert dense_flops(bidirectional, 37, 9) == dense_flops(causal, 37, 9)


def test_less_is_needed_than_the_paper_counts() -> None:
    for name, history, candidates, share in (("flame-base", 512, 128, 0.85), ("flame-long", 1024, 512, 0.70)):
        spec = preset(name)
        needed = needed_flops(spec, history, candidates)
        assert needed == needed_encode_flops(spec, history) + needed_score_flops(spec, history, candidates)
        assert needed < share * dense_flops(spec, history, candidates)


def test_nothing_costs_nothing() -> None:
    assert needed_encode_flops(preset("flame-base"), 0) == 0
    assert needed_score_flops(preset("flame-base"), 512, 0) == 0


def test_a_module_of_ones_own_has_no_formula(own_spec) -> None:
    with pytest.raises(PackageError, match="module of its own"):
        dense_flops(own_spec, 10, 10)
