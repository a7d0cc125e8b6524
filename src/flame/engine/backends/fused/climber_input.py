"""Climber's input stage in the fused backend: the tokens kernel, or PyTorch's operations in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flame.engine.backends.fused.input_sizes import token_sizes
from flame.engine.backends.fused.precision import Precision
from flame.engine.backends.fused.program import LaunchMemory
from flame.engine.inputs import ModelInputs, unpack
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.kernels.tokens import TokenPlaces, Tokens
from flame.engine.models.input_stage import FeatureRow, InputStage
from flame.engine.spec import ModelSpec

PREFIX = "input."


class FusedInput:
    """One kernel from packed words to tokens; it also writes lengths and ages into the states."""

    def __init__(
        self,
        spec: ModelSpec,
        precision: Precision,
        runtime: Runtime,
        weights: Mapping[str, Tensor] | None,
        ages: int | None,
    ) -> None:
        self._spec = spec
        self._runtime = runtime
        assert spec.climber is not None
        self._tokens = Tokens(token_sizes(spec, spec.climber.dim, ages=ages), precision.pointer)
        self._weights = self._tokens.pack(part(weights, PREFIX), precision.dtype, runtime.device) if weights else None

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return self._tokens.kernels

    def rank(self, memory: LaunchMemory, states: Tensor) -> None:
        """Tokens of events and candidates into `memory.x`."""
        assert self._weights is not None
        self._tokens.rank(self._runtime, self._weights, self._places(memory), memory.words, memory.x, states)

    def encode(self, memory: LaunchMemory, states: Tensor) -> None:
        """Tokens of events."""
        assert self._weights is not None
        self._tokens.encode(self._runtime, self._weights, self._places(memory), memory.words, memory.x, states)

    def score(self, memory: LaunchMemory, states: Tensor) -> None:
        """Tokens of candidates."""
        assert self._weights is not None
        self._tokens.score(self._runtime, self._weights, self._places(memory), memory.words, memory.x, states)

    def _places(self, memory: LaunchMemory) -> TokenPlaces:
        layout = self._spec.layout(memory.profile)
        return TokenPlaces(
            layout.users,
            layout.events_start,
            layout.events,
            layout.candidates_start,
            layout.candidates,
            memory.rows.events,
        )


class PlainInput(FusedInput):
    """PyTorch's operations for the tokens; the kernel behind them is left with what only it does.

    The kernel runs first, because states get their lengths from it, and PyTorch writes its own tokens over it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        precision: Precision,
        runtime: Runtime,
        weights: Mapping[str, Tensor] | None,
        ages: int | None,
    ) -> None:
        super().__init__(spec, precision, runtime, weights, ages)
        self._precision = precision
        self._stage = _stage(spec, precision, runtime.device, part(weights, PREFIX)) if weights else None

    def rank(self, memory: LaunchMemory, states: Tensor) -> None:
        super().encode(memory, states)
        inputs = self._inputs(memory)
        self._events(memory, inputs)
        self._candidates(memory, inputs)

    def encode(self, memory: LaunchMemory, states: Tensor) -> None:
        super().encode(memory, states)
        self._events(memory, self._inputs(memory))

    def score(self, memory: LaunchMemory, states: Tensor) -> None:
        self._candidates(memory, self._inputs(memory))

    def _events(self, memory: LaunchMemory, inputs: ModelInputs) -> None:
        assert self._stage is not None
        with torch.inference_mode():
            memory.x[:, :, : inputs.event_item.shape[2]].copy_(self._stage.events(inputs))

    def _candidates(self, memory: LaunchMemory, inputs: ModelInputs) -> None:
        assert self._stage is not None
        first, count = memory.rows.events, inputs.candidate_item.shape[1]
        with torch.inference_mode():
            memory.x[:, :, first : first + count].copy_(self._stage.candidates(inputs)[:, None])

    def _inputs(self, memory: LaunchMemory) -> ModelInputs:
        """What the model reads, floats in the program's precision."""
        inputs = unpack(memory.words, self._spec.layout(memory.profile))
        floats = ("event_floats", "candidate_floats", "user_floats", "context_floats")
        embeddings = ("event_embedding", "candidate_embedding")
        names = floats + (embeddings if inputs.event_embedding is not None else ())
        return replace(inputs, **{name: getattr(inputs, name).to(self._precision.dtype) for name in names})


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _stage(spec: ModelSpec, precision: Precision, device: torch.device, weights: dict[str, Tensor]) -> InputStage:
    """The model's own input stage, with nothing left in it that a launch would have to copy from the host."""
    assert spec.climber is not None
    with torch.device("meta"):
        stage = InputStage(spec.input, spec.climber.dim)
    wanted = stage.state_dict()
    given = {name: weights[name].to(device, precision.dtype) for name in wanted}
    stage.load_state_dict(given, assign=True)
    for row in stage.modules():
        if isinstance(row, FeatureRow):
            row.offsets = torch.as_tensor(row.offsets, dtype=torch.int32, device=device)
    return stage
