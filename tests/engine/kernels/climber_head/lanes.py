"""The order in which the fusion leaves a row's columns to the experts."""

from __future__ import annotations

import torch
from torch import Tensor


def lane_order(width: int) -> Tensor:
    """Where each column of such a row stands in a usual one: of 32 columns, what a lane of a product has is together.

    `rows[..., lane_order(width)]` are usual rows in this order.
    """
    blocks = torch.arange(width).view(width // 32, 4, 4, 2)
    return blocks.transpose(1, 2).flatten()
