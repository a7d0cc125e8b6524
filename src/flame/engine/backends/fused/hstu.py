"""HSTU as a program: tokens, layers, last norm and towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flame.engine.backends.fused.hstu_input import new_tokens, packed_tokens, token_places
from flame.engine.backends.fused.hstu_layers import HstuLayers, LayerWork
from flame.engine.backends.fused.hstu_sizes import EPS, HstuSizes
from flame.engine.backends.fused.precision import Precision
from flame.engine.backends.fused.program import LaunchMemory
from flame.engine.backends.fused.rows import EVENT_TILE, Rows
from flame.engine.backends.fused.state import workspace_states
from flame.engine.kernels.gather import Gather
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.kernels.rows import Selection
from flame.engine.kernels.tokens import TokenPlaces
from flame.engine.kernels.towers import NormedTowers, TowerSizes
from flame.engine.spec import ModelSpec, Profile
from flame.errors import BackendUnavailable

_MOST_HEAD_DIM = 128
_HEAD = ("norm.weight", "norm.bias", "head.hidden.weight", "head.hidden.bias", "head.out.weight", "head.out.bias")
_ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class HstuMemory(LaunchMemory):
    """With where records lie, the layers' workspace, and the memory of the workspace's own states."""

    places: TokenPlaces
    work: LayerWork
    own: Tensor


class HstuProgram:
    """An HSTU on one device.

    An HSTU has no kernel over several layers and no feed-forward half: to leave out the parts "stack" and
    "feed-forward" changes nothing. Raises `BackendUnavailable` for sizes that its kernels do not take.
    """

    def __init__(
        self,
        spec: ModelSpec,
        precision: Precision,
        runtime: Runtime,
        weights: Mapping[str, Tensor] | None,
        without: frozenset[str],
        capability: int,
    ) -> None:
        _check(spec, without)
        self._spec = spec
        self._precision = precision
        self._runtime = runtime
        self._sizes = HstuSizes.of(spec)
        self.append_tile = EVENT_TILE if spec.appendable else 0
        self._gather = Gather(spec.record)
        self._tokens = new_tokens(spec, precision)
        self._layers = HstuLayers(self._sizes, precision, runtime, weights, capability)
        self._towers = NormedTowers(_tower_sizes(spec), precision.pointer)
        if weights is not None:
            device, dtype = runtime.device, precision.dtype
            self._token_weights = packed_tokens(self._tokens, weights, dtype, device)
            self._tower_weights = self._towers.pack({name: weights[name] for name in _HEAD}, dtype, device)

    def kernels(self) -> Sequence[Kernel]:
        return [self._gather.kernel, *self._tokens.kernels, *self._layers.kernels, *self._towers.kernels]

    def state_bytes(self, capacity: int) -> int:
        size = self._sizes.state_elements * capacity * self._precision.dtype.itemsize
        return -(-size // _ALIGNMENT) * _ALIGNMENT

    def memory(self, profile: Profile) -> HstuMemory:
        rows, device = Rows.of(self._spec, profile), self._runtime.device
        dim = self._sizes.config.dim
        own, addresses = workspace_states(rows.users, rows.events, self.state_bytes(rows.events), device)
        return HstuMemory(
            profile=profile,
            rows=rows,
            words=torch.zeros(self._spec.layout(profile).words, dtype=torch.int32, device=device),
            scores=torch.zeros(profile.users, profile.candidates, len(self._spec.tasks), device=device),
            states=addresses.clone(),
            own_states=addresses,
            x=torch.empty(rows.users, 1, rows.per_block, dim, dtype=self._precision.dtype, device=device),
            places=token_places(self._spec, profile, rows.events),
            work=self._layers.work(rows),
            own=own,
        )

    def gather(self, memory: LaunchMemory, header: Tensor, sources: Tensor, select: Selection) -> None:
        layout = self._spec.layout(memory.profile)
        self._gather.launch(self._runtime, layout, header, sources, memory.words, select)

    def rank(self, memory: LaunchMemory) -> None:
        self.tokens(memory)
        self.layers(memory)
        self._score(_own(memory))

    def tokens(self, memory: LaunchMemory) -> None:
        own = _own(memory)
        self._tokens.rank(self._runtime, self._token_weights, own.places, own.words, own.x, own.own_states)

    def layers(self, memory: LaunchMemory) -> None:
        own = _own(memory)
        self._run(own, own.own_states, "all")

    def encode(self, memory: LaunchMemory) -> None:
        own = _own(memory)
        self._tokens.encode(self._runtime, self._token_weights, own.places, own.words, own.x, own.states)
        self._run(own, own.states, "events")

    def score(self, memory: LaunchMemory) -> None:
        own = _own(memory)
        self._tokens.score(self._runtime, self._token_weights, own.places, own.words, own.x, own.states)
        self._run(own, own.states, "candidates")
        self._score(own)

    def _run(self, memory: HstuMemory, states: Tensor, select: Selection) -> None:
        self._layers.run(memory.rows, memory.words, memory.x, states, memory.work, select)

    def _score(self, memory: HstuMemory) -> None:
        first, scores = memory.rows.events, memory.scores
        self._towers.launch(self._runtime, self._tower_weights, memory.words, memory.x, first, scores)


def _own(memory: LaunchMemory) -> HstuMemory:
    assert isinstance(memory, HstuMemory), "memory of another program"
    return memory


def _tower_sizes(spec: ModelSpec) -> TowerSizes:
    assert spec.hstu is not None
    sigmoids = tuple(task.activation == "sigmoid" for task in spec.tasks)
    return TowerSizes(spec.hstu.dim, spec.hstu.tower_hidden, sigmoids, spec.record.header_words, EPS)


def _check(spec: ModelSpec, without: frozenset[str]) -> None:
    assert spec.hstu is not None
    if missing := sorted(without & {"tokens", "head"}):
        raise BackendUnavailable(f"engine.without {missing}: the fused HSTU has no other form of these parts")
    most = max(spec.hstu.attention_dim, spec.hstu.linear_dim)
    if most > _MOST_HEAD_DIM:
        raise BackendUnavailable(f"fused runs HSTU heads of up to {_MOST_HEAD_DIM}, model {spec.name!r} has {most}")
