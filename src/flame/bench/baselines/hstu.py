"""HSTU in plain PyTorch, with its own pointwise attention or with a softmax in its place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu

from flame.bench.baselines.attention import Pointwise
from flame.bench.baselines.compiling import Compile
from flame.bench.baselines.tokens import cast
from flame.engine.inputs import ModelInputs
from flame.engine.models import Hstu
from flame.engine.models.head import activate
from flame.engine.models.hstu import StuLayer
from flame.engine.models.relative_bias import time_bucket
from flame.engine.package import ModelPackage


class StuWeights(NamedTuple):
    """Weights of a layer; names as in `StuLayer`."""

    norm_in: Tensor
    norm_in_bias: Tensor
    uvqk: Tensor
    uvqk_bias: Tensor
    norm_out: Tensor
    norm_out_bias: Tensor
    out: Tensor

    @classmethod
    def of(cls, layer: StuLayer, dtype: torch.dtype) -> StuWeights:
        parts = (layer.norm_in, layer.uvqk, layer.norm_out)
        tensors = [tensor for part in parts for tensor in (part.weight, part.bias)] + [layer.out.weight]
        return cls(*(tensor.detach().to(dtype).clone() for tensor in tensors))


class PlainHstu:
    """The whole model in one precision; each part is compiled by itself."""

    def __init__(
        self, package: ModelPackage, attend: Pointwise, compile_part: Compile, dtype: torch.dtype, device: torch.device
    ) -> None:
        model = package.model(device)
        assert isinstance(model, Hstu)
        self.weights = [StuWeights.of(layer, dtype) for layer in model.layers]
        self.heads, self.parts = model.layers[0].heads, list(model.layers[0].parts)
        self.model, self.tasks, self.dtype = model.to(dtype), package.spec.tasks, dtype
        self._attend = attend
        self._layer = compile_part(self._one_layer)
        self._before = compile_part(self._tokens)
        self._after = compile_part(self._scores)

    @torch.no_grad()
    def scores(self, inputs: ModelInputs) -> Tensor:
        """Scores after activation `[users, candidates, tasks]`; every history is full."""
        scores: Tensor = self._after(self.stack(self._before(inputs), inputs.candidate_item.shape[1]))
        return scores

    @torch.no_grad()
    def tokens(self, inputs: ModelInputs) -> Tensor:
        """Rows `[users, events + candidates, dim]`."""
        tokens: Tensor = self._before(inputs)
        return tokens

    @torch.no_grad()
    def stack(self, x: Tensor, candidates: int) -> Tensor:
        """The layers alone: rows of candidates `[users, candidates, dim]` from tokens `[users, rows, dim]`."""
        for weights in self.weights:
            x = self._layer(x, weights)
        return x[:, -candidates:]

    def _tokens(self, inputs: ModelInputs) -> Tensor:
        given, model = cast(inputs, self.dtype), self.model
        times = model.times(time_bucket(model.seconds(given), model.buckets))
        events = (model.input.events(given) + times)[:, 0]
        scenario = model.scenarios(given.scenario)[:, None]
        candidates = model.input.candidates(given) + model.times.weight[0] + scenario
        return torch.cat([events, candidates], 1).to(self.dtype)

    def _one_layer(self, x: Tensor, weights: StuWeights) -> Tensor:
        normal = layer_norm(x, x.shape[-1:], weights.norm_in, weights.norm_in_bias, 1e-6)
        u, v, q, k = torch.split(linear(normal, weights.uvqk, weights.uvqk_bias), self.parts, -1)
        attended = self._attend(self._by_head(q), self._by_head(k), self._by_head(v)).transpose(1, 2).flatten(2)
        gate = silu(u)
        gated = gate * layer_norm(attended, attended.shape[-1:], weights.norm_out, weights.norm_out_bias, 1e-6)
        return x + linear(torch.cat([gate, attended, gated], -1), weights.out)

    def _by_head(self, x: Tensor) -> Tensor:
        users, rows, width = x.shape
        return x.view(users, rows, self.heads, width // self.heads).transpose(1, 2)

    def _scores(self, outputs: Tensor) -> Tensor:
        shared = layer_norm(outputs, outputs.shape[-1:], self.model.norm.weight, self.model.norm.bias, 1e-6)
        towers = self.model.head
        logits: Tensor = towers(shared[:, None].expand(-1, towers.hidden.weight.shape[0], -1, -1))
        return activate(logits.float(), self.tasks)
