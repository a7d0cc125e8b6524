"""Climber against a second implementation, written with loops in numpy and float64 from the formulas alone."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from flame.engine.models import create
from flame.engine.models.climber_layer import ClimberLayer
from flame.engine.models.relative_bias import time_bucket
from flame.engine.presets import preset


class Reference:
    """One user at a time, one row at a time."""

    def __init__(self, spec, model) -> None:
        self.spec, self.sizes = spec, spec.climber
        self.w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}

    def logits(self, inputs, user: int) -> np.ndarray:
        """`[candidates in use, tasks]`."""
        count = int(inputs.candidate_count[user])
        scenario = int(inputs.scenario[user])
        tokens = [self.candidate(inputs, user, index) for index in range(count)]
        outputs = [self.block(inputs, user, block, tokens) for block in range(len(self.spec.input.sequences))]
        return np.array([self.head(self.fuse([rows[c] for rows in outputs], scenario)) for c in range(count)])

    def row(self, name: str, fields, integers, floats) -> np.ndarray:
        total = np.zeros(self.sizes.dim)
        start = column = 0
        for field in fields:
            if field.dtype == "int32":
                for word in range(math.prod(field.shape)):
                    total = total + self.w[f"{name}.categories.weight"][start + int(integers[column + word])]
                start, column = start + field.vocabulary, column + math.prod(field.shape)
        return total + self.w[f"{name}.dense.weight"] @ floats.numpy() + self.w[f"{name}.dense.bias"]

    def item(self, row: int, integers, floats) -> np.ndarray:
        vector = self.w["input.items.weight"][row]
        if "input.item_projection.weight" in self.w:
            vector = self.w["input.item_projection.weight"] @ vector + self.w["input.item_projection.bias"]
        return vector + self.row("input.item_features", self.spec.input.item, integers, floats)

    def candidate(self, inputs, user: int, index: int) -> np.ndarray:
        own = inputs.candidate_item[user, index], inputs.candidate_integers[user, index]
        token = self.item(*own, inputs.candidate_floats[user, index]) + self.w["input.positions.weight"][0]
        schema = self.spec.input
        token = token + self.row(
            "input.user_features", schema.user, inputs.user_integers[user], inputs.user_floats[user]
        )
        context = inputs.context_integers[user], inputs.context_floats[user]
        return token + self.row("input.context_features", schema.context, *context)

    def event(self, inputs, user: int, block: int, slot: int, length: int) -> np.ndarray:
        at = (user, block, slot)
        token = self.item(inputs.event_item[at], inputs.event_integers[at], inputs.event_floats[at])
        token = token + self.w["input.actions.weight"][inputs.event_action[at]]
        place = slot + 1 if self.spec.input.positions == "oldest" else length - slot
        return token + self.w["input.positions.weight"][place]

    def block(self, inputs, user: int, block: int, candidates: list[np.ndarray]) -> list[np.ndarray]:
        length, scenario = int(inputs.lengths[user, block]), int(inputs.scenario[user])
        rows = [self.event(inputs, user, block, slot, length) for slot in range(length)] + candidates
        places = [(slot, int(inputs.event_age[user, block, slot])) for slot in range(length)]
        places += [(length, 0)] * len(candidates)
        for layer in range(self.sizes.layers):
            rows = [
                self.layer_row(f"layers.{layer}", block, rows, query, self.seen(query, length), places, scenario)
                for query in range(len(rows))
            ]
        return rows[length:]

    def seen(self, query: int, length: int) -> list[int]:
        if query >= length:
            return [*range(length), query]
        return list(range(query + 1 if self.sizes.causal else length))

    def bias(self, block: int, head: int, query, key, scenario: int) -> float:
        if self.sizes.relative_bias is None:
            return 0.0
        reach, buckets = self.sizes.relative_bias.positions, self.sizes.relative_bias.time_buckets
        distance = max(-reach, min(reach, key[0] - query[0])) + reach
        bucket = min((1 + abs(query[1] - key[1])).bit_length() - 1, buckets - 1)
        tables = (
            self.w["relative_bias.positions"][block, head, distance]
            + self.w["relative_bias.times"][block, head, bucket]
        )
        return self.w["relative_bias.scenario_scale"][block, head, scenario] * tables

    def layer_row(self, name: str, block: int, rows, query: int, seen, places, scenario: int) -> np.ndarray:
        """One row after the layer; `places` None means no bias."""
        dim, heads = self.sizes.dim, self.sizes.heads
        size = dim // heads
        weight, offset = self.w[f"{name}.qkv.weight"][block], self.w[f"{name}.qkv.bias"][block]
        temperature = math.exp(self.w[f"{name}.log_temperature"][block, scenario])
        attended = []
        for head in range(heads):
            part = [slice(kind * dim + head * size, kind * dim + (head + 1) * size) for kind in range(3)]
            q = weight[part[0]] @ rows[query] + offset[part[0]]
            logits = []
            for key in seen:
                product = q @ (weight[part[1]] @ rows[key] + offset[part[1]])
                extra = self.bias(block, head, places[query], places[key], scenario) if places else 0.0
                logits.append((product + extra) / temperature)
            shares = np.exp(np.array(logits) - max(logits))
            values = [weight[part[2]] @ rows[key] + offset[part[2]] for key in seen]
            attended.append(sum(share * value for share, value in zip(shares / shares.sum(), values, strict=True)))
        return self.after_attention(name, block, rows[query], np.concatenate(attended))

    def after_attention(self, name: str, block: int, x: np.ndarray, attended: np.ndarray) -> np.ndarray:
        def feed_forward(row: np.ndarray) -> np.ndarray:
            hidden = self.w[f"{name}.ffn_in.weight"][block] @ row + self.w[f"{name}.ffn_in.bias"][block]
            return self.w[f"{name}.ffn_out.weight"][block] @ hidden.clip(0) + self.w[f"{name}.ffn_out.bias"][block]

        def norm(row: np.ndarray) -> np.ndarray:
            normal = (row - row.mean()) / np.sqrt(row.var() + 1e-5)
            return normal * self.w[f"{name}.norm.weight"][block] + self.w[f"{name}.norm.bias"][block]

        if self.sizes.wiring == "climber":
            return norm(x + feed_forward(attended))
        return x + attended + norm(feed_forward(x + attended))

    def fuse(self, outputs: list[np.ndarray], scenario: int) -> np.ndarray:
        every = list(range(len(outputs)))
        rows = [self.layer_row("fusion.layer", 0, outputs, query, every, None, scenario) for query in every]
        wide = np.concatenate(rows)
        squeezed = (self.w["fusion.squeeze.weight"] @ wide + self.w["fusion.squeeze.bias"]).clip(0)
        return wide / (1 + np.exp(-(self.w["fusion.excite.weight"] @ squeezed + self.w["fusion.excite.bias"])))

    def head(self, x: np.ndarray) -> list[float]:
        def affine(name: str, index: int, row: np.ndarray) -> np.ndarray:
            return self.w[f"head.{name}.weight"][index] @ row + self.w[f"head.{name}.bias"][index]

        experts = [
            affine("experts_out", index, affine("experts_in", index, x).clip(0)) for index in range(self.sizes.experts)
        ]
        logits = []
        for task in range(len(self.spec.tasks)):
            gate = np.exp(affine("gates", task, x))
            mixed = sum(share * expert for share, expert in zip(gate / gate.sum(), experts, strict=True))
            logits.append(float(affine("towers.out", task, affine("towers.hidden", task, mixed).clip(0))[0]))
        return logits


def test_the_whole_model_agrees_with_the_formulas(climber_spec, make_model, make_inputs) -> None:
    model = make_model(climber_spec)
    sequences = len(climber_spec.input.sequences)
    lengths = [(6, 9, 4)[:sequences], (0, 1, 2)[:sequences], (0, 0, 0)[:sequences]]
    inputs = make_inputs(climber_spec, lengths, [5, 2, 1])
    found = model.rank(inputs).detach().numpy()
    reference = Reference(climber_spec, model)
    for user in range(3):
        expected = reference.logits(inputs, user)
        np.testing.assert_allclose(found[user, : len(expected)], expected, rtol=1e-4, atol=2e-5)


def test_causal_and_bidirectional_histories_differ_as_they_should(make_model, make_inputs) -> None:
    causal = preset("tiny-climber-causal")
    bidirectional = msgspec.structs.replace(causal, climber=msgspec.structs.replace(causal.climber, causal=False))
    one, other = make_model(causal), make_model(bidirectional)
    short = make_inputs(causal, [(1, 1), (0, 0)], [23, 23])
    torch.testing.assert_close(one.rank(short), other.rank(short))
    long = make_inputs(causal, [(19, 19), (2, 2)], [23, 23])
    difference = (one.rank(long) - other.rank(long)).abs()
    assert difference[0].mean() > 0.01
    assert difference[1].mean() > 0.001


def test_a_causal_event_ignores_later_events_and_a_bidirectional_one_does_not(make_model, make_inputs) -> None:
    """Keys of layer 2 and up show what an event has seen; positions count back from the newest, so it is replaced."""
    for name, unmoved in (("tiny-climber-causal", True), ("tiny-climber", False)):
        spec = preset(name)
        model = make_model(spec)
        inputs = make_inputs(spec, [(10, 10)], [1])
        before = model.encode(inputs)
        inputs.event_item[0, :, 9] += 1
        after = model.encode(inputs)
        moved = (before[0] - after[0]).abs().amax((0, 2, 3, 5))
        assert (moved[1:, :9].max() == 0) == unmoved
        assert (moved[:, 9] > 0).all()


def test_the_state_is_keys_and_values_of_every_layer_and_sequence(make_model, make_inputs) -> None:
    spec = preset("tiny-climber-bias")
    keys, values, lengths, ages = make_model(spec).encode(make_inputs(spec, [(3, 2, 1), (0, 0, 0)], [1, 1]))
    assert keys.shape == values.shape == (2, 3, 3, 2, 19, 12)
    assert lengths.tolist() == [[3, 2, 1], [0, 0, 0]]
    assert (ages[0, 0, 3:] == 0).all()


def test_a_fresh_temperature_is_the_root_of_the_head_dim_and_stays_positive() -> None:
    layer = ClimberLayer(blocks=2, dim=24, heads=2, ffn=8, scenarios=3, wiring="flame")
    torch.testing.assert_close(layer.log_temperature.exp(), torch.full((2, 3), math.sqrt(12)))
    with torch.no_grad():
        layer.log_temperature.fill_(-30.0)
    assert (layer.log_temperature.exp() > 0).all()


def test_a_layer_pays_heed_to_mask_bias_and_scenario() -> None:
    torch.manual_seed(0)
    layer = ClimberLayer(blocks=2, dim=8, heads=2, ffn=12, scenarios=2, wiring="flame")
    with torch.no_grad():
        layer.log_temperature[:, 1] += 1.0
    x, bias = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 2, 5, 5)
    every, scenario = torch.zeros(1, 2, 1, 5, 5), torch.tensor([0])
    plain, _ = layer(x, every, None, scenario)
    assert not torch.allclose(plain, layer(x, every, bias, scenario)[0])
    assert not torch.allclose(plain, layer(x, every, None, torch.tensor([1]))[0])
    blind = every.clone()
    blind[..., 0, 4] = -math.inf
    masked, _ = layer(x, blind, None, scenario)
    assert not torch.allclose(plain[:, :, 0], masked[:, :, 0])
    torch.testing.assert_close(plain[:, :, 1:], masked[:, :, 1:])


@pytest.mark.parametrize(
    "seconds", [0, 1, 2, 3, 6, 7, 8, 2**24 - 2, 2**24 - 1, 2**25 - 2, 2**30 - 2, 2**31 - 2, 2**31 - 1]
)
def test_time_buckets_are_exact_at_the_powers_of_two(seconds: int) -> None:
    expected = (1 + seconds).bit_length() - 1
    assert time_bucket(torch.tensor([seconds], dtype=torch.int32), 64).item() == expected
    assert time_bucket(torch.tensor([seconds], dtype=torch.int32), 5).item() == min(expected, 4)


@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_reach_every_parameter_and_garbage_none(climber_spec, make_inputs, steps: int) -> None:
    torch.manual_seed(0)
    model = create(climber_spec)
    full = tuple(sequence.capacity(37) for sequence in climber_spec.input.sequences)
    inputs = make_inputs(climber_spec, [full, (3,) * len(full), (0,) * len(full)], [23, 4, 1])
    logits = model(inputs) if steps == 1 else model.score(model.encode(inputs), inputs)
    logits[inputs.candidate_valid].pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name == "fusion.layer.log_temperature" and len(full) == 1:
            continue  # one block attends to itself alone, at any temperature
        assert parameter.grad.abs().sum() > 0, name


def test_training_lowers_the_loss(make_inputs) -> None:
    torch.manual_seed(0)
    spec = preset("tiny-climber-bias")
    model = create(spec)
    inputs = make_inputs(spec, [(19, 18, 11), (5, 5, 5)], [23, 23])
    labels = (inputs.candidate_item % 2).float()[..., None].expand(-1, -1, 3)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
