"""Climber in plain PyTorch: its layers with any attention, between ends that several variants share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flame.bench.baselines.attention import Softmax
from flame.bench.baselines.climber_ends import ClimberEnds, Sharpness
from flame.bench.baselines.climber_layer import Layer, LayerWeights
from flame.bench.baselines.compiling import Compile
from flame.engine.inputs import ModelInputs
from flame.engine.models import Climber
from flame.engine.package import ModelPackage
from flame.errors import ConfigError


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
        ends: ClimberEnds | None = None,
    ) -> None:
        model, sizes = package.model(device), package.spec.climber
        assert isinstance(model, Climber)
        assert sizes is not None
        if model.relative_bias is not None:
            raise ConfigError(f"{package.spec.name} has a relative bias, which the baselines are not written for")
        blocks = len(package.spec.input.sequences)
        self._groups = [slice(0, blocks)] if together else [slice(block, block + 1) for block in range(blocks)]
        self._weights = [[LayerWeights.of(layer, group, dtype) for layer in model.layers] for group in self._groups]
        self._layer = compile_part(Layer(attend, sizes.heads, sizes.wiring).__call__)
        self.ends = ends or ClimberEnds(model, package.spec.tasks, compile_part, dtype)

    @torch.no_grad()
    def scores(self, inputs: ModelInputs) -> Tensor:
        """Scores after activation `[users, candidates, tasks]`; every history is full."""
        tokens, sharpness = self.ends.tokens(inputs, self._groups)
        return self.ends.scores(self.stack(tokens, inputs.candidate_item.shape[1], sharpness), inputs)

    @torch.no_grad()
    def tokens(self, inputs: ModelInputs) -> list[Tensor]:
        """What `stack` takes."""
        return self.ends.tokens(inputs, self._groups)[0]

    @torch.no_grad()
    def sharpness(self, inputs: ModelInputs) -> Sharpness:
        """What `stack` takes besides, where the temperatures are to count."""
        return self.ends.tokens(inputs, self._groups)[1]

    @torch.no_grad()
    def stack(self, tokens: Sequence[Tensor], candidates: int, sharpness: Sharpness | None = None) -> Tensor:
        """The layers alone: rows of candidates `[users, blocks, candidates, dim]` from `tokens`.

        `tokens` `[blocks that run at once, users, rows, dim]` for each group of blocks; without `sharpness` the
        temperature is the square root of the head dimension.
        """
        out = []
        for group, (x, weights) in enumerate(zip(tokens, self._weights, strict=True)):
            for index, own in enumerate(weights):
                x = self._layer(x, own, sharpness[group][index] if sharpness else None)
            out.append(x[:, :, -candidates:])
        return torch.cat(out).transpose(0, 1)
