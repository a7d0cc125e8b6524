"""Climber as a program: tokens, layers, fusion and heads, all on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flame.engine.backends.fused.climber_half import LayerWork
from flame.engine.backends.fused.climber_head import FusedHead, HeadWork, PlainHead
from flame.engine.backends.fused.climber_input import FusedInput, PlainInput
from flame.engine.backends.fused.climber_layers import Layers
from flame.engine.backends.fused.climber_sizes import LayerSizes
from flame.engine.backends.fused.climber_stack import StackLayers, StackWork, why_no_stack
from flame.engine.backends.fused.precision import Precision
from flame.engine.backends.fused.program import LaunchMemory
from flame.engine.backends.fused.rows import EVENT_TILE, Rows
from flame.engine.backends.fused.state import MOST_BLOCKS, workspace_states
from flame.engine.kernels.gather import Gather
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.kernels.rows import Selection
from flame.engine.spec import ModelSpec, Profile
from flame.errors import BackendUnavailable

_MOST_HEAD_DIM = 128
_SELECTIONS: dict[str, Selection] = {"rank": "all", "encode": "events", "score": "candidates"}


@dataclass(frozen=True, slots=True)
class ClimberMemory(LaunchMemory):
    """A launch's memory with the workspace of its kernels and the states that `own_states` points to."""

    own_memory: Tensor
    layers: LayerWork | StackWork
    head: HeadWork | None


class ClimberProgram:
    """A Climber on one device; with `weights` None it only tells its kernels and sizes."""

    def __init__(
        self,
        spec: ModelSpec,
        precision: Precision,
        runtime: Runtime,
        weights: Mapping[str, Tensor] | None,
        without: frozenset[str],
        capability: int,
    ) -> None:
        """Raises `BackendUnavailable` for a model that its kernels cannot run."""
        _check(spec)
        self._spec = spec
        self._precision = precision
        self._runtime = runtime
        self._device = runtime.device
        self._gather = Gather(spec.record)
        sizes = LayerSizes.of(spec, precision)
        self._layers: Layers | StackLayers
        if "stack" in without or why_no_stack(spec, sizes, capability):
            self._layers = Layers(sizes, runtime, weights, capability, fused="feed-forward" not in without)
        else:
            self._layers = StackLayers(spec, sizes, runtime, weights)
        tokens = PlainInput if "tokens" in without else FusedInput
        # PyTorch's operations would look up every event, and those of the prefix may be anything.
        self.append_tile = EVENT_TILE if spec.appendable and tokens is FusedInput else 0
        self._input = tokens(spec, precision, runtime, weights, self._layers.ages)
        head = PlainHead if "head" in without else FusedHead
        self._head = head(spec, precision, runtime, weights, capability)

    def kernels(self) -> Sequence[Kernel]:
        return (self._gather.kernel, *self._input.kernels, *self._layers.kernels, *self._head.kernels)

    def state_bytes(self, capacity: int) -> int:
        return self._layers.state_bytes(capacity)

    def memory(self, profile: Profile) -> ClimberMemory:
        assert self._spec.climber is not None
        rows, device = Rows.of(self._spec, profile), self._device
        shape = (rows.users, rows.blocks, rows.per_block, self._spec.climber.dim)
        x = torch.empty(shape, dtype=self._precision.dtype, device=device)
        words = torch.zeros(self._spec.layout(profile).words, dtype=torch.int32, device=device)
        own, addresses = workspace_states(rows.users, rows.events, self.state_bytes(rows.events), device)
        scores = (profile.users, profile.candidates, len(self._spec.tasks))
        return ClimberMemory(
            profile=profile,
            rows=rows,
            words=words,
            scores=torch.zeros(scores, device=device),
            states=addresses.clone(),
            own_states=addresses,
            x=x,
            own_memory=own,
            layers=self._layers.work(rows, words, x),
            head=self._head.work(rows),
        )

    def ways(self, profile: Profile, kind: str) -> Sequence[str]:
        """Those of the layers in one launch."""
        if not isinstance(self._layers, StackLayers):
            return ()
        return tuple(self._layers.ways(Rows.of(self._spec, profile), _SELECTIONS[kind]))

    def take(self, profile: Profile, kind: str, way: str) -> None:
        assert isinstance(self._layers, StackLayers), "there is one way"
        self._layers.take(Rows.of(self._spec, profile), _SELECTIONS[kind], way)

    def gather(self, memory: LaunchMemory, header: Tensor, sources: Tensor, select: Selection) -> None:
        layout = self._spec.layout(memory.profile)
        self._gather.launch(self._runtime, layout, header, sources, memory.words, select)

    def rank(self, memory: LaunchMemory) -> None:
        self.tokens(memory)
        self.layers(memory)
        self._score(_own(memory))

    def tokens(self, memory: LaunchMemory) -> None:
        own = _own(memory)
        self._input.rank(own, own.own_states)

    def layers(self, memory: LaunchMemory) -> None:
        own = _own(memory)
        self._run(own, own.own_states, "all")

    def encode(self, memory: LaunchMemory) -> None:
        own = _own(memory)
        self._input.encode(own, own.states)
        self._run(own, own.states, "events")

    def score(self, memory: LaunchMemory) -> None:
        own = _own(memory)
        self._input.score(own, own.states)
        self._run(own, own.states, "candidates")
        self._score(own)

    def _run(self, memory: ClimberMemory, states: Tensor, select: Selection) -> None:
        self._layers.run(memory.layers, states, select)  # type: ignore[arg-type]

    def _score(self, memory: ClimberMemory) -> None:
        self._head.launch(memory, memory.head)  # type: ignore[arg-type]


def _check(spec: ModelSpec) -> None:
    assert spec.climber is not None
    head_dim, blocks = spec.climber.dim // spec.climber.heads, len(spec.input.sequences)
    if head_dim > _MOST_HEAD_DIM:
        raise BackendUnavailable(f"fused takes heads of up to {_MOST_HEAD_DIM}, climber has dim / heads = {head_dim}")
    if blocks > MOST_BLOCKS:
        raise BackendUnavailable(f"fused takes up to {MOST_BLOCKS} sequences, input.sequences has {blocks}")


def _own(memory: LaunchMemory) -> ClimberMemory:
    assert isinstance(memory, ClimberMemory), "memory of another program"
    return memory
