"""The same as the kernel in plain fp32 PyTorch, step by step of the definition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flame.engine.kernels.fusion.sizes import FusionSizes


def fused(sizes: FusionSizes, weights: Mapping[str, Tensor], rows: Tensor, scenario: int) -> Tensor:
    """Block outputs `rows` `[candidates, blocks, dim]` of one user -> `[candidates, blocks * dim]`.

    `weights` by the names of a gated fusion (`layer.qkv.weight`, `squeeze.bias`, ...).
    """
    own = {name.removeprefix("layer."): tensor for name, tensor in weights.items()}
    qkv = rows @ own["qkv.weight"][0].T + own["qkv.bias"][0]
    queries, keys, values = qkv.view(*rows.shape[:2], 3, sizes.heads, sizes.head).permute(2, 0, 3, 1, 4)
    logits = queries @ keys.transpose(-1, -2) / own["log_temperature"][0, scenario].exp()
    attended = (torch.softmax(logits, -1) @ values).transpose(1, 2).flatten(2)
    if sizes.residual_first:
        residual = rows + attended
        result = residual + _norm(_feed_forward(residual, own), own)
    else:
        result = _norm(rows + _feed_forward(attended, own), own)
    wide = result.flatten(1)
    squeezed = torch.relu(wide @ own["squeeze.weight"].T + own["squeeze.bias"])
    gated: Tensor = wide * torch.sigmoid(squeezed @ own["excite.weight"].T + own["excite.bias"])
    return gated


def _feed_forward(rows: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    hidden = torch.relu(rows @ own["ffn_in.weight"][0].T + own["ffn_in.bias"][0])
    out: Tensor = hidden @ own["ffn_out.weight"][0].T + own["ffn_out.bias"][0]
    return out


def _norm(rows: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    centred = rows - rows.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    out: Tensor = normal * own["norm.weight"][0] + own["norm.bias"][0]
    return out
