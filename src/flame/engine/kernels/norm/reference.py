"""LayerNorm in plain fp32 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """x `[users, blocks, rows, dim]`, gain and shift `[blocks, dim]`."""
    y = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], eps=eps) * gain[:, None] + shift[:, None]
    return y if residual is None else y + residual.float()


def row_statistics(x: Tensor, eps: float) -> Tensor:
    """Mean and 1 / sqrt(variance + eps) of the rows of `x` `[..., dim]`: `[..., 2]`."""
    variance, mean = torch.var_mean(x.float(), -1, correction=0)
    return torch.stack([mean, (variance + eps).rsqrt()], -1)
