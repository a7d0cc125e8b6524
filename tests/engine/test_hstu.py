"""HSTU against a second implementation, written with loops in numpy and float64 from the STU code's formulas."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from flame.engine.models import create
from flame.engine.models.hstu import StuLayer
from flame.engine.presets import preset
from flame.engine.spec import HstuConfig, Profile


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * weight + bias


def stu_row(w: dict[str, np.ndarray], sizes: HstuConfig, rows: list[np.ndarray], query: int, seen, longest: int):
    """One row after a layer."""

    def parts(row: np.ndarray) -> list[np.ndarray]:
        split = np.split(
            w["uvqk.weight"] @ norm(row, w["norm_in.weight"], w["norm_in.bias"]) + w["uvqk.bias"],
            np.cumsum([value, value, attention]),
        )
        return [silu(split[0]), *(part.reshape(sizes.heads, -1) for part in split[1:])]

    value, attention = sizes.heads * sizes.linear_dim, sizes.heads * sizes.attention_dim
    u, _, q, _ = parts(rows[query])
    o = np.zeros((sizes.heads, sizes.linear_dim))
    for key in seen:
        _, v, _, k = parts(rows[key])
        for head in range(sizes.heads):
            o[head] += silu(q[head] @ k[head] / math.sqrt(sizes.attention_dim)) / longest * v[head]
    o = o.reshape(-1)
    y = u * norm(o, w["norm_out.weight"], w["norm_out.bias"])
    return rows[query] + w["out.weight"] @ np.concatenate([u, o, y])


@pytest.mark.parametrize("causal", [True, False])
def test_one_layer_agrees_with_the_formulas(causal: bool) -> None:
    torch.manual_seed(1)
    sizes = HstuConfig(dim=10, layers=1, heads=3, attention_dim=5, linear_dim=4)
    layer = StuLayer(sizes, scale=1 / 17)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(1, 7, 10)
    mask = torch.ones(7, 7, dtype=torch.bool).tril() if causal else torch.ones(7, 7, dtype=torch.bool)
    found, _ = layer(x, mask[None, None])
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in layer.state_dict().items()}
    rows = list(x[0].numpy().astype(np.float64))
    for query in range(7):
        expected = stu_row(w, sizes, rows, query, range(query + 1 if causal else 7), 17)
        np.testing.assert_allclose(found[0, query].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_whole_model_agrees_with_the_formulas(hstu_spec, make_model, make_inputs) -> None:
    model = make_model(hstu_spec)
    sizes = hstu_spec.hstu
    inputs = make_inputs(hstu_spec, [(9,), (1,), (0,)], [4, 3, 2])
    found = model.rank(inputs).detach().numpy()
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        events = model.input.events(inputs)[:, 0].numpy().astype(np.float64)
        candidates = model.input.candidates(inputs).numpy().astype(np.float64)
    for user, (length, count) in enumerate([(9, 4), (1, 3), (0, 2)]):
        rows = []
        for slot in range(length):
            seconds = int(inputs.event_age[user, 0, slot])
            if sizes.times == "gap":
                seconds = int(inputs.event_age[user, 0, slot - 1]) - seconds if slot else 0
            rows.append(events[user, slot] + w["times.weight"][min((1 + seconds).bit_length() - 1, 19)])
        own = w["times.weight"][0] + w["scenarios.weight"][int(inputs.scenario[user])]
        rows += [candidates[user, index] + own for index in range(count)]
        for layer in range(sizes.layers):
            prefix = f"layers.{layer}."
            own_w = {name.removeprefix(prefix): values for name, values in w.items() if name.startswith(prefix)}
            rows = [
                stu_row(own_w, sizes, rows, query, _seen(query, length, sizes.causal), 38) for query in range(len(rows))
            ]
        for index in range(count):
            out = norm(rows[length + index], w["norm.weight"], w["norm.bias"])
            hidden = (w["head.hidden.weight"] @ out + w["head.hidden.bias"]).clip(0)
            expected = np.einsum("toh,th->t", w["head.out.weight"], hidden) + w["head.out.bias"][:, 0]
            np.testing.assert_allclose(found[user, index], expected, rtol=1e-4, atol=2e-5)


def _seen(query: int, length: int, causal: bool) -> list[int]:
    if query >= length:
        return [*range(length), query]
    return list(range(query + 1 if causal else length))


def test_the_scale_is_the_models_and_not_the_batchs(make_model, make_inputs) -> None:
    """The trap of the public code: dividing by the longest history of the batch."""
    spec = preset("tiny-hstu")
    model = make_model(spec)
    alone = make_inputs(spec, [(5,)], [3], profile=Profile(1, 5, 3))
    beside = make_inputs(spec, [(5,), (37,)], [3, 23])
    torch.testing.assert_close(model.rank(beside)[0, :3], model.rank(alone)[0], rtol=2e-5, atol=2e-6)
    assert {layer.scale for layer in model.layers} == {1 / 38}


def test_the_candidate_limit_does_not_change_scores(make_model, make_inputs) -> None:
    spec = preset("tiny-hstu")
    wider = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, max_candidates=200))
    inputs = make_inputs(spec, [(37,)], [23])
    assert torch.equal(make_model(spec).rank(inputs), make_model(wider).rank(inputs))


def test_causal_and_bidirectional_histories_differ_as_they_should(make_model, make_inputs) -> None:
    causal, bidirectional = make_model(preset("tiny-hstu")), make_model(preset("tiny-hstu-bidirectional"))
    short = make_inputs(preset("tiny-hstu"), [(1,), (0,)], [23, 23])
    torch.testing.assert_close(causal.rank(short), bidirectional.rank(short))
    long = make_inputs(preset("tiny-hstu"), [(37,), (2,)], [23, 23])
    difference = (causal.rank(long) - bidirectional.rank(long)).abs()
    assert difference[0].mean() > 0.01
    assert difference[1].mean() > 1e-4


def test_event_age_matters(make_model, make_inputs) -> None:
    spec = preset("tiny-hstu")
    model = make_model(spec)
    inputs = make_inputs(spec, [(37,)], [23])
    before = model.rank(inputs)
    inputs.event_age[:] = inputs.event_age // 8
    assert (model.rank(inputs) - before).abs().mean() > 1e-3


@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_reach_every_parameter_and_garbage_none(hstu_spec, make_inputs, steps: int) -> None:
    torch.manual_seed(0)
    model = create(hstu_spec)
    inputs = make_inputs(hstu_spec, [(37,), (3,), (0,)], [23, 4, 1])
    logits = model(inputs) if steps == 1 else model.score(model.encode(inputs), inputs)
    logits[inputs.candidate_valid].pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
