"""HSTU's pointwise attention in plain fp32 PyTorch, for one user."""

from __future__ import annotations

import torch
from torch import Tensor


def pointwise_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    own: tuple[Tensor, Tensor] | None,
    *,
    causal: bool,
    scale: float,
) -> Tensor:
    """Rows against a history's keys `[heads, length, attention dim]` and values `[heads, length, linear dim]`.

    queries `[heads, rows, attention dim]`, multiplied by alpha / 2. Candidates have `own` keys and values
    `[heads, rows, dim]`; events have none, and row r sees slots 0 to r where the history is causal.
    """
    queries, keys, values = queries.float(), keys.float(), values.float()
    weights = torch.nn.functional.silu(2 * queries @ keys.transpose(1, 2))
    if own is None and causal:
        rows, slots = torch.arange(queries.shape[1]), torch.arange(keys.shape[1])
        weights = weights * (slots <= rows[:, None]).to(weights.device)
    sums = weights @ values
    if own is not None:
        own_keys, own_values = own
        itself = torch.nn.functional.silu(2 * (queries * own_keys.float()).sum(-1, keepdim=True))
        sums = sums + itself * own_values.float()
    return sums * scale
