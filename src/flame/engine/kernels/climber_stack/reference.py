"""The same in plain PyTorch: in fp32, what the kernels are held to; in bf16, how far rounding alone goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.kernels.climber_stack.sizes import HEAD_DIM, StackSizes


class History(NamedTuple):
    """Keys and values of every layer, each `[layers, heads, length, 32]`, of one user's block."""

    keys: Tensor
    values: Tensor


def encode(sizes: StackSizes, weights: Mapping[str, Tensor], x: Tensor, block: int, scenario: int) -> History:
    """`x` `[length, dim]`: the live events of one user's block."""
    keys, values = [], []
    for layer in range(sizes.layers):
        q, k, v = _project(sizes, weights, x, layer, block)
        keys.append(k)
        values.append(v)
        logits = q @ k.transpose(-1, -2) / _temperature(weights, layer, block, scenario)
        x = _finish(weights, x, torch.softmax(logits, -1) @ v, layer, block)
    return History(torch.stack(keys), torch.stack(values))


def score(
    sizes: StackSizes, weights: Mapping[str, Tensor], x: Tensor, history: History, block: int, scenario: int
) -> Tensor:
    """`x` `[candidates, dim]`: the live candidates of one user's block; what the last layer makes of them."""
    for layer in range(sizes.layers):
        q, k, v = _project(sizes, weights, x, layer, block)
        past = q @ history.keys[layer].transpose(-1, -2)
        logits = torch.cat([past, (q * k).sum(-1, keepdim=True)], -1) / _temperature(weights, layer, block, scenario)
        p = torch.softmax(logits, -1)
        x = _finish(weights, x, p[..., :-1] @ history.values[layer] + p[..., -1:] * v, layer, block)
    return x


def rank(
    sizes: StackSizes,
    weights: Mapping[str, Tensor],
    x: Tensor,
    events: int,
    lengths: Sequence[Sequence[int]],
    counts: Sequence[int],
    scenarios: Sequence[int],
) -> Tensor:
    """`x` `[users, blocks, events + candidates, dim]`, its live candidate rows replaced; `weights` have its type."""
    out = x.clone()
    for user, scenario in enumerate(scenarios):
        for block in range(sizes.blocks):
            rows = x[user, block]
            history = encode(sizes, weights, rows[: lengths[user][block]], block, scenario)
            live = slice(events, events + counts[user])
            out[user, block, live] = score(sizes, weights, rows[live], history, block, scenario)
    return out


def _project(
    sizes: StackSizes, weights: Mapping[str, Tensor], x: Tensor, layer: int, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each `[heads, rows, 32]`."""
    qkv = _linear(weights, x, f"layers.{layer}.qkv", block).reshape(-1, 3, sizes.heads, HEAD_DIM)
    q, k, v = qkv.permute(1, 2, 0, 3)
    return q, k, v


def _temperature(weights: Mapping[str, Tensor], layer: int, block: int, scenario: int) -> Tensor:
    return weights[f"layers.{layer}.log_temperature"][block, scenario].exp()


def _finish(weights: Mapping[str, Tensor], x: Tensor, attended: Tensor, layer: int, block: int) -> Tensor:
    """Residual, feed-forward net and norm; `attended` `[heads, rows, 32]`."""
    prefix = f"layers.{layer}."
    y = x + attended.transpose(0, 1).flatten(1)
    hidden = torch.relu(_linear(weights, y, prefix + "ffn_in", block))
    out = _linear(weights, hidden, prefix + "ffn_out", block)
    norm = weights[prefix + "norm.weight"][block], weights[prefix + "norm.bias"][block]
    return y + torch.nn.functional.layer_norm(out, out.shape[-1:], *norm, eps=1e-5)


def _linear(weights: Mapping[str, Tensor], x: Tensor, name: str, block: int) -> Tensor:
    return torch.nn.functional.linear(x, weights[f"{name}.weight"][block], weights[f"{name}.bias"][block])
