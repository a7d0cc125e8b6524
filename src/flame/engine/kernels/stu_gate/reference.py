"""HSTU's gate in plain fp32 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def stu_gate(u: Tensor, o: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """All `[..., dim]`."""
    return u.float() * torch.nn.functional.layer_norm(o.float(), o.shape[-1:], gain, shift, eps)
