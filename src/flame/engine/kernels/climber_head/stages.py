"""The bytes of a stage of weights: matrices as `wgmma` takes them, vectors in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from flame.engine.kernels.climber_stack.packing import columns_first


def matrix(weight: Tensor) -> Tensor:
    """`[columns, inputs]` as the bytes of a product's matrix."""
    return columns_first(weight.t()[None]).flatten()


def fp32(vector: Tensor) -> Tensor:
    """The bytes of a vector."""
    return vector.float().contiguous().flatten().view(torch.uint8)
