"""What stands before and behind Climber's layers, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flame.bench.baselines.compiling import Compile
from flame.bench.baselines.mixture import Mixture
from flame.bench.baselines.tokens import cast
from flame.engine.inputs import ModelInputs
from flame.engine.models import Climber
from flame.engine.models.head import activate
from flame.engine.spec import Task

Sharpness = list[list[Tensor]]
"""One over the temperature, `[blocks * users]` by group of blocks and layer."""


class ClimberEnds:
    """Tokens and temperatures, fusion and head, in one precision; models with other layers between them share one."""

    def __init__(self, model: Climber, tasks: Sequence[Task], compile_part: Compile, dtype: torch.dtype) -> None:
        self._temperatures = torch.stack([layer.log_temperature for layer in model.layers])
        self._tasks, self._dtype = tasks, dtype
        self._input, self._fusion = model.input.to(dtype), model.fusion.to(dtype)
        self._mixture = Mixture(model.head.to(dtype))
        self._before, self._after = compile_part(self._tokens), compile_part(self._scores)

    def tokens(self, inputs: ModelInputs, groups: Sequence[slice]) -> tuple[list[Tensor], Sharpness]:
        """For every group of blocks, its rows `[blocks, users, rows, dim]` and its sharpness."""
        rows, sharpness = self._before(inputs, tuple((group.start, group.stop) for group in groups))
        return [rows[group] for group in groups], sharpness

    def scores(self, outputs: Tensor, inputs: ModelInputs) -> Tensor:
        """Scores `[users, candidates, tasks]` from `outputs` `[users, blocks, candidates, dim]`."""
        scores: Tensor = self._after(outputs, inputs)
        return scores

    def _tokens(self, inputs: ModelInputs, groups: tuple[tuple[int, int], ...]) -> tuple[Tensor, Sharpness]:
        given = cast(inputs, self._dtype)
        events = self._input.events(given).transpose(0, 1)
        candidates = self._input.candidates(given).expand(len(events), -1, -1, -1)
        rows = torch.cat([events, candidates], 2).to(self._dtype)
        sharpness = (-self._temperatures[:, :, inputs.scenario]).exp()
        return rows, [[layer[start:stop].flatten().clone() for layer in sharpness] for start, stop in groups]

    def _scores(self, outputs: Tensor, inputs: ModelInputs) -> Tensor:
        logits = self._mixture(self._fusion(outputs, inputs.scenario))
        return activate(logits.float(), self._tasks)
