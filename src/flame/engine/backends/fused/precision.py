"""The precisions of the fused backend, in the words of PyTorch and of Triton."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """What weights, activations, keys and values are stored in; sums, norms and softmax are fp32 in every precision."""

    name: str
    dtype: torch.dtype
    triton: str

    @property
    def pointer(self) -> str:
        """Triton's type of a pointer to it."""
        return f"*{self.triton}"


PRECISIONS = {
    "bf16": Precision("bf16", torch.bfloat16, "bf16"),
    "fp16": Precision("fp16", torch.float16, "fp16"),
    "fp32": Precision("fp32", torch.float32, "fp32"),
}
