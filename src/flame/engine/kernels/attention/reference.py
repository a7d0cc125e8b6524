"""The same as the kernel in plain fp32 PyTorch, row by row of the definition."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    own: Tensor | None,
    scale: Tensor,
    *,
    causal: bool = False,
    bias: Tensor | None = None,
    own_bias: Tensor | None = None,
) -> Tensor:
    """One user, block and layer: queries `[heads, rows, head dim]`, keys and values `[heads, length, head dim]`.

    `own` `[2, heads, rows, head dim]` holds the rows' own keys and values where they are candidates; `causal` hides
    later slots from event rows. `bias` `[heads, rows, length]` and `own_bias` `[heads]` are added before the scale
    (with log2(e) in it). Gives `[heads, rows, head dim]`.
    """
    logits = queries @ keys.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    if causal:
        rows, length = logits.shape[-2:]
        logits = logits.masked_fill(torch.ones(rows, length).triu(1).bool(), -math.inf)
    if own is not None:
        itself = (queries * own[0]).sum(-1, keepdim=True)
        if own_bias is not None:
            itself = itself + own_bias[:, None, None]
        logits = torch.cat([logits, itself], -1)
    weights = torch.softmax(logits * scale * math.log(2), -1)
    if own is None:
        return weights @ values
    return weights[..., :-1] @ values + weights[..., -1:] * own[1]


def bias_of(positions: Tensor, times: Tensor, query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Entries of `positions` `[heads, 2 * reach + 1]` and `times` `[heads, buckets]`, summed: `[heads, rows, keys]`.

    `query` and `key` are slots and ages in seconds.
    """
    reach, buckets = positions.shape[1] // 2, times.shape[1]
    distance = (key[0][None, :] - query[0][:, None]).clamp(-reach, reach) + reach
    apart = (query[1][:, None] - key[1][None, :]).abs()
    bucket = [min(int(value + 1).bit_length() - 1, buckets - 1) for value in apart.flatten().tolist()]
    return positions[:, distance] + times[:, torch.tensor(bucket, dtype=torch.long).view(apart.shape)]
