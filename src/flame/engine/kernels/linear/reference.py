"""The linear layer in plain fp32 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-6,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """x `[users, blocks, rows, inputs]`, weight `[blocks, outputs, inputs]`, norm gain and shift `[blocks, inputs]`."""
    x = x.float()
    if norm is not None:
        gain, shift = norm
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps) * gain[:, None] + shift[:, None]
    y = torch.einsum("ubrk,bok->ubro", x, weight.float())
    if bias is not None:
        y = y + bias[:, None]
    if activation == "relu":
        y = torch.relu(y)
    if activation == "silu":
        y = torch.nn.functional.silu(y)
    return y if residual is None else y + residual.float()
