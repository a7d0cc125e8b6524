"""Attention of a history and its candidates, several ways: rows are all events, then all candidates.

Queries, keys and values are `[users, heads, rows, head dim]`. An event sees the events (up to itself where the history
is causal), a candidate sees the events and itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Softmax = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Queries, keys, values, and what logits are multiplied with: `[users]` fp32, or None for 1 / sqrt(head dim)."""


Pointwise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values."""


class Shape(NamedTuple):
    """Rows of one sequence in one launch, all of them in use."""

    events: int
    candidates: int
    causal: bool

    @property
    def rows(self) -> int:
        return self.events + self.candidates

    def mask(self, device: torch.device) -> Tensor:
        """Who may look at whom: bool `[rows, rows]`."""
        row = torch.arange(self.rows, device=device)
        return self.sees(row[:, None], row[None, :])

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether row `query` may look at row `key`."""
        seen = key < self.events
        if self.causal:
            seen = seen & (key <= query)
        return seen | (key == query)


def dense(shape: Shape, device: torch.device, dtype: torch.dtype) -> Softmax:
    """Every pair of rows, with a mask that is added."""
    mask = torch.zeros(shape.rows, shape.rows, device=device, dtype=dtype)
    mask.masked_fill_(~shape.mask(device), torch.finfo(dtype).min / 2)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, sharpness: Tensor | None) -> Tensor:
        products = queries @ keys.transpose(-1, -2)
        if sharpness is None:
            logits = products / math.sqrt(queries.shape[-1])
        else:
            logits = products * sharpness.to(dtype)[:, None, None, None]
        return torch.softmax(logits + mask, -1) @ values

    return attend


def sdpa(shape: Shape, device: torch.device) -> Softmax:
    """`scaled_dot_product_attention` with a mask of booleans."""
    mask = shape.mask(device)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, sharpness: Tensor | None) -> Tensor:
        scale = None
        if sharpness is not None:
            queries, scale = queries * sharpness.to(queries.dtype)[:, None, None, None], 1.0
        return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)

    return attend


def flex(shape: Shape, device: torch.device) -> Softmax:
    """FlexAttention, which leaves out masked tiles; to be compiled."""
    blocks = block_mask(shape, device)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, sharpness: Tensor | None) -> Tensor:
        if sharpness is None:
            return _output(flex_attention(queries, keys, values, block_mask=blocks))

        def sharper(logit: Tensor, user: Tensor, *_: Tensor) -> Tensor:
            return logit * sharpness[user]

        return _output(flex_attention(queries, keys, values, score_mod=sharper, block_mask=blocks, scale=1.0))

    return attend


def block_mask(shape: Shape, device: torch.device) -> BlockMask:
    """The mask as FlexAttention takes it, made once."""

    def sees(_user: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return shape.sees(query, key)

    return create_block_mask(sees, None, None, shape.rows, shape.rows, device=str(device))


def silu_dense(shape: Shape, device: torch.device, scale: float) -> Pointwise:
    """HSTU's pointwise attention over every pair of rows, with a mask that is multiplied."""
    mask = shape.mask(device)

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return _pointwise(queries @ keys.transpose(-1, -2), queries.shape[-1], scale).mul(mask) @ values

    return attend


def silu(shape: Shape, device: torch.device, scale: float) -> Pointwise:
    """The same in two parts, so that no candidate is compared with another; to be compiled."""
    row = torch.arange(shape.events, device=device)
    causal = row[None, :] <= row[:, None] if shape.causal else None

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        parts = [shape.events, shape.candidates]
        (past, new), (past_keys, own_keys), (past_values, own_values) = (
            torch.split(one, parts, 2) for one in (queries, keys, values)
        )
        width = queries.shape[-1]
        among = _pointwise(past @ past_keys.transpose(-1, -2), width, scale)
        events = (among if causal is None else among * causal) @ past_values
        itself = _pointwise((new * own_keys).sum(-1, keepdim=True), width, scale)
        towards = _pointwise(new @ past_keys.transpose(-1, -2), width, scale)
        return torch.cat([events, towards @ past_values + itself * own_values], 2)

    return attend


def _pointwise(products: Tensor, width: int, scale: float) -> Tensor:
    return torch.nn.functional.silu(products / math.sqrt(width)) * scale


def _output(found: Any) -> Tensor:
    """FlexAttention's type says that it may give more than its output; as it is called here it does not."""
    assert isinstance(found, Tensor)
    return found
