"""Presets and their random weights: the paper's shapes, and nothing about them neutral or degenerate."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from flame.engine.flops import dense_flops
from flame.engine.models import create, expected_tensors
from flame.engine.presets import names, preset, random_weights
from flame.engine.sampling import random_lengths
from flame.engine.spec import ModelSpec, Profile


@pytest.mark.parametrize("name", [name for name in names() if name != "flame-long"])
def test_weights_are_complete_finite_and_repeatable(name: str) -> None:
    spec = preset(name)
    weights = random_weights(spec, 1)
    expected = expected_tensors(spec)
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in weights.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in expected.items()
    }
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    again, other = random_weights(spec, 1), random_weights(spec, 2)
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert not any(torch.equal(weights[key], other[key]) for key in weights)


def test_a_model_is_described_without_pytorchs_compiler() -> None:
    """Every start of a server describes its model; the import would take two seconds of it."""
    code = "from flame.engine.models import expected_tensors as of; from flame.engine.presets import names, preset"
    code += "; import sys; [of(preset(name)) for name in names()]; print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", ["flame-base", "flame-long"])
def test_the_papers_models_have_the_papers_shape(name: str) -> None:
    spec = preset(name)
    assert spec.input.max_history == {"flame-base": 512, "flame-long": 1024}[name]
    assert spec.input.item_row.words * 4 == 64
    assert (spec.input.item_row.integer_words, spec.input.item_row.float_words) == (12, 4)
    assert [(sequence.part, sequence.of) for sequence in spec.input.sequences] == [(0, 2), (1, 2)]
    assert (spec.climber.dim, spec.climber.layers, spec.climber.heads, spec.climber.ffn) == (96, 12, 3, 384)
    assert [task.name for task in spec.tasks] == ["complete_play", "like", "share", "comment"]
    assert dense_flops(spec, spec.input.max_history, 128) > 3e9


def test_scores_spread_and_do_not_saturate(any_spec: ModelSpec, make_model, make_inputs) -> None:
    full = tuple(sequence.capacity(37) for sequence in any_spec.input.sequences)
    inputs = make_inputs(any_spec, [full] * 4, [23] * 4)
    for seed in range(3):
        with torch.no_grad():
            logits = make_model(any_spec, seed).rank(inputs)
        spread = logits.std(1)
        assert (spread > 0.02).all()
        assert (spread < 4).all()
        assert (logits.abs() < 12).all()


def test_the_deep_preset_behaves_too(make_model, make_inputs) -> None:
    spec = preset("flame-base")
    inputs = make_inputs(spec, [(256, 256)], [24], profile=Profile(1, 512, 24))
    with torch.no_grad():
        logits = make_model(spec).rank(inputs)
    assert (logits.std(1) > 0.2).all()
    assert (logits.abs() < 12).all()


def test_nothing_is_neutral() -> None:
    weights = random_weights(preset("tiny-climber-bias"), 0)
    for name, tensor in weights.items():
        assert tensor.std() > 0.01, name
        neutral = 1.0 if "norm.weight" in name or "scenario_scale" in name else 0.0
        if "log_temperature" in name:
            neutral = math.log(math.sqrt(12))
        assert (tensor != neutral).all(), name


def test_fresh_models_start_from_small_scores(any_spec: ModelSpec, make_inputs) -> None:
    torch.manual_seed(0)
    full = tuple(sequence.capacity(37) for sequence in any_spec.input.sequences)
    with torch.no_grad():
        assert (create(any_spec).rank(make_inputs(any_spec, [full], [23])).abs() < 2).all()


def test_random_lengths_are_empty_one_full_and_between() -> None:
    spec, rng = preset("tiny-climber-bias"), np.random.default_rng(0)
    seen = {random_lengths(spec, 37, rng) for _ in range(200)}
    assert {(0, 0, 0), (1, 1, 1), (19, 19, 11)} <= seen
    assert len(seen) > 50
    assert all(own <= most for lengths in seen for own, most in zip(lengths, (19, 19, 11), strict=True))
    assert {random_lengths(spec, 0, rng) for _ in range(50)} == {(0, 0, 0)}
