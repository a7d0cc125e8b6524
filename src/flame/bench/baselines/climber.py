"""Climber in plain PyTorch: tokens in front, its layers with any attention, fusion and head behind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flame.bench.baselines.attention import Softmax
from flame.bench.baselines.climber_layer import Layer, LayerWeights
from flame.bench.baselines.compiling import Compile
from flame.bench.baselines.mixture import Mixture
from flame.bench.baselines.tokens import cast
from flame.engine.inputs import ModelInputs
from flame.engine.models import Climber
from flame.engine.models.head import activate
from flame.engine.package import ModelPackage
from flame.errors import ConfigError

Sharpness = Sequence[Sequence[Tensor]]
"""One over the temperature, `[blocks * users]` by group of blocks and layer."""


class PlainClimber:
    """The whole model in one precision; `together` runs all blocks in one batch instead of one after the other.

    Each part is compiled by itself: nothing that stands in two of them could be fused, as matrix products part them.
    """

    def __init__(
        self,
        package: ModelPackage,
        attend: Softmax,
        compile_part: Compile,
        dtype: torch.dtype,
        device: torch.device,
        *,
        together: bool = False,
    ) -> None:
        model, sizes = package.model(device), package.spec.climber
        assert isinstance(model, Climber)
        assert sizes is not None
        if model.relative_bias is not None:
            raise ConfigError(f"{package.spec.name} has a relative bias, which the baselines are not written for")
        blocks = len(package.spec.input.sequences)
        groups = [slice(0, blocks)] if together else [slice(block, block + 1) for block in range(blocks)]
        self.weights = [[LayerWeights.of(layer, group, dtype) for layer in model.layers] for group in groups]
        self.temperatures = torch.stack([layer.log_temperature for layer in model.layers])
        self.tasks, self.dtype, self.groups = package.spec.tasks, dtype, groups
        self.input = model.input.to(dtype)
        self.fusion = model.fusion.to(dtype)
        self.mixture = Mixture(model.head.to(dtype))
        self._layer = compile_part(Layer(attend, sizes.heads, sizes.wiring).__call__)
        self._before = compile_part(self._tokens)
        self._after = compile_part(self._scores)

    @torch.no_grad()
    def scores(self, inputs: ModelInputs) -> Tensor:
        """Scores after activation `[users, candidates, tasks]`; every history is full."""
        tokens, sharpness = self._before(inputs)
        outputs = self.stack(tokens, inputs.candidate_item.shape[1], sharpness)
        scores: Tensor = self._after(outputs, inputs)
        return scores

    @torch.no_grad()
    def tokens(self, inputs: ModelInputs) -> list[Tensor]:
        """What `stack` takes."""
        tokens: list[Tensor] = self._before(inputs)[0]
        return tokens

    @torch.no_grad()
    def stack(self, tokens: Sequence[Tensor], candidates: int, sharpness: Sharpness | None = None) -> Tensor:
        """The layers alone: rows of candidates `[users, blocks, candidates, dim]` from `tokens`.

        `tokens` `[blocks that run at once, users, rows, dim]` for each group of blocks; without `sharpness` the
        temperature is the square root of the head dimension.
        """
        out = []
        for group, (x, weights) in enumerate(zip(tokens, self.weights, strict=True)):
            for index, own in enumerate(weights):
                x = self._layer(x, own, sharpness[group][index] if sharpness else None)
            out.append(x[:, :, -candidates:])
        return torch.cat(out).transpose(0, 1)

    @torch.no_grad()
    def sharpness(self, inputs: ModelInputs) -> Sharpness:
        """What `stack` takes besides, where the temperatures are to count."""
        sharpness: Sharpness = self._before(inputs)[1]
        return sharpness

    def _tokens(self, inputs: ModelInputs) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Rows of every group of blocks, and one over the temperature by group and layer `[blocks * users]`."""
        given = cast(inputs, self.dtype)
        events = self.input.events(given).transpose(0, 1)
        candidates = self.input.candidates(given).expand(len(events), -1, -1, -1)
        rows = torch.cat([events, candidates], 2).to(self.dtype)
        sharpness = (-self.temperatures[:, :, inputs.scenario]).exp()
        by_group = [[layer[group].flatten().clone() for layer in sharpness] for group in self.groups]
        return [rows[group] for group in self.groups], by_group

    def _scores(self, outputs: Tensor, inputs: ModelInputs) -> Tensor:
        logits = self.mixture(self.fusion(outputs, inputs.scenario))
        return activate(logits.float(), self.tasks)
