"""The same as the kernels in plain fp32 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

Affine = tuple[Tensor, Tensor]
"""Weight `[blocks, outputs, inputs]` (of a norm `[blocks, dim]`) and bias `[blocks, outputs]`."""


def linear(x: Tensor, layer: Affine) -> Tensor:
    """`x` `[users, blocks, rows, inputs]` -> `[users, blocks, rows, outputs]`."""
    weight, bias = layer
    return torch.einsum("ubri,boi->ubro", x, weight) + bias[:, None, :]


def norm(x: Tensor, layer: Affine) -> Tensor:
    """LayerNorm over the last dimension, eps 1e-5."""
    gain, shift = layer
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5) * gain[:, None, :] + shift[:, None, :]


def feed_forward(
    inputs: Tensor, x: Tensor, ffn_in: Affine, ffn_out: Affine, last: Affine, *, norm_last: bool
) -> Tensor:
    """The half of a layer after attention: the next `x`."""
    branch = linear(torch.relu(linear(inputs, ffn_in)), ffn_out)
    return norm(x + branch, last) if norm_last else inputs + norm(branch, last)
