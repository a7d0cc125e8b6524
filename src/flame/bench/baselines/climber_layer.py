"""One layer of Climber in plain PyTorch, of one block or of several at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from flame.bench.baselines.attention import Softmax
from flame.engine.models.climber_layer import ClimberLayer


class LayerWeights(NamedTuple):
    """Weights of a layer, one stack entry for each block that runs at once; names as in `ClimberLayer`."""

    qkv: Tensor
    qkv_bias: Tensor
    ffn_in: Tensor
    ffn_in_bias: Tensor
    ffn_out: Tensor
    ffn_out_bias: Tensor
    norm: Tensor
    norm_bias: Tensor

    @classmethod
    def of(cls, layer: ClimberLayer, blocks: slice, dtype: torch.dtype) -> LayerWeights:
        """Those of some blocks, in one precision."""
        parts = (layer.qkv, layer.ffn_in, layer.ffn_out, layer.norm)
        tensors = [tensor for part in parts for tensor in (part.weight, part.bias)]
        return cls(*(tensor.detach()[blocks].to(dtype).clone() for tensor in tensors))


class Layer(NamedTuple):
    """The formula of `ClimberLayer` with one way to attend."""

    attend: Softmax
    heads: int
    wiring: str

    def __call__(self, x: Tensor, weights: LayerWeights, sharpness: Tensor | None) -> Tensor:
        """`x` `[blocks, users, rows, dim]`, `sharpness` `[blocks * users]` or None."""
        attended = self._attended(_stacked(x, weights.qkv, weights.qkv_bias), sharpness)
        if self.wiring == "climber":
            return _norm(x + _feed_forward(attended, weights), weights)
        residual = x + attended
        return residual + _norm(_feed_forward(residual, weights), weights)

    def _attended(self, projected: Tensor, sharpness: Tensor | None) -> Tensor:
        blocks, users, rows, width = projected.shape
        split = projected.view(blocks * users, rows, 3, self.heads, width // (3 * self.heads))
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)
        attended = self.attend(queries, keys, values, sharpness).transpose(1, 2)
        return attended.reshape(blocks, users, rows, width // 3)


def _feed_forward(x: Tensor, weights: LayerWeights) -> Tensor:
    inner = torch.relu(_stacked(x, weights.ffn_in, weights.ffn_in_bias))
    return _stacked(inner, weights.ffn_out, weights.ffn_out_bias)


def _stacked(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer for each block."""
    if len(weight) == 1:
        return linear(x, weight[0], bias[0])
    blocks, users, rows, _ = x.shape
    out = torch.baddbmm(bias[:, None], x.flatten(1, 2), weight.transpose(1, 2))
    return out.view(blocks, users, rows, weight.shape[1])


def _norm(x: Tensor, weights: LayerWeights) -> Tensor:
    if len(weights.norm) == 1:
        return layer_norm(x, x.shape[-1:], weights.norm[0], weights.norm_bias[0])
    return layer_norm(x, x.shape[-1:]) * weights.norm[:, None, None] + weights.norm_bias[:, None, None]
