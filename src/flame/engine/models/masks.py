"""Attention masks as tensors, the way a plain PyTorch model writes them. True means "may look at".

A row may always look at itself, so that no softmax runs over nothing; unused slots are seen by nobody else.
"""

from __future__ import annotations

import torch
from torch import Tensor


def history_mask(valid: Tensor, causal: bool) -> Tensor:
    """Events among themselves: `valid` `[users, sequences, events]` -> `[users, sequences, 1, events, events]`."""
    return rank_mask(valid, 0, causal)


def rank_mask(valid: Tensor, candidates: int, causal: bool) -> Tensor:
    """Events followed by candidates, rows and keys alike: `[users, sequences, 1, rows, rows]`.

    Events see the history (up to themselves where it is causal), candidates see the history and themselves.
    """
    events = valid.shape[-1]
    rows = events + candidates
    seen = torch.nn.functional.pad(valid, (0, candidates))[..., None, None, :].expand(-1, -1, 1, rows, rows)
    row = torch.arange(rows, device=valid.device)
    if causal:
        seen = seen & (row[None, :] <= row[:, None])
    return seen | (row[None, :] == row[:, None])


def additive(mask: Tensor) -> Tensor:
    """The same as float32 to add to logits: 0 where True, -inf where False."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
