"""The contract of an engine: a built model that runs fixed shapes into given buffers.

An engine offers three launches with equal results: `rank` does everything, `encode` reduces histories to states and
`score` scores candidates against states. A launch reads the packed input buffer of its profile (`flame.layout`) and
writes `scores`. Slots beyond a length hold garbage (even NaN) and change nothing. Engines hold no per-request state;
two threads may run one engine at the same time with different buffers.

A history that has grown need not be encoded again from its start. Where `append_tile` is not 0, `encode` goes on from a
state that an encode of the same oldest events has filled: the header's prefix says how many of them it holds, a
multiple of the tile. The state is then what an encode of the whole history makes of it (bit for bit in `compiled` and
`fused`). Packed words hold all events all the same; of the prefix's, nothing but the ages is read.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from flame.engine.spec import ModelSpec, Profile, ProfileCost
from flame.layout import PackedLayout, Words

if TYPE_CHECKING:
    import torch


class HistoryState(Protocol):
    """What candidates need of one user's history; opaque outside the engine that made it."""

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LaunchBuffers:
    """Static memory of one executor for one profile, allocated once by `Engine.buffers` and owned by the executor.

    `words` `[layout.words]` is the host side that is filled before a launch, `scores` `[users, candidates, tasks]`
    the host side that is read after it. On a CPU the device tensors share their memory; on a GPU the launch reads
    the one and writes the other.

    With `sources` int64 `[users, SOURCE_WORDS]` (`flame.layout`) the launch fetches events and candidates of slot `u`
    from where `sources[u]` says: memory that the device can read, and that stays as it is until the launch has ended.
    They begin as those of `words` itself. Headers are always read from `words`.
    """

    profile: Profile
    layout: PackedLayout
    words: Words
    scores: NDArray[np.float32]
    device_words: torch.Tensor
    device_scores: torch.Tensor
    sources: NDArray[np.int64] | None = field(default=None, kw_only=True)


class Engine(abc.ABC):
    """A model built for one device, precision and set of profiles."""

    spec: ModelSpec
    backend: str
    device: str
    precision: str
    profiles: tuple[Profile, ...]
    costs: Mapping[Profile, ProfileCost]
    graph_safe: bool = False
    gathers: bool = False
    """Whether its buffers have `sources`."""
    append_tile: int = 0

    @abc.abstractmethod
    def buffers(self, profile: Profile) -> LaunchBuffers:
        """Allocates buffers for launches of `profile`; never called on the request path."""

    @abc.abstractmethod
    def state(self, history: int) -> HistoryState:
        """Allocates room for one user's encoded history of up to `history` events."""

    @abc.abstractmethod
    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        """Scores the candidates of the first `users` slots: writes `buffers.scores[u, :candidates of u]`."""

    @abc.abstractmethod
    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        """Writes the encoded history of slot `u` into `states[u]`; candidate sections are not read.

        Goes on behind the header's prefix. Raises `ExecutionError` for one that is no multiple of `append_tile`, or
        longer than the history or what `states[u]` holds; the states are then lost.
        """

    @abc.abstractmethod
    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        """Scores the candidates of slot `u` against `states[u]`; event sections are not read."""

    def ways(self, profile: Profile) -> Mapping[str, Sequence[str]]:
        """By kind of launch (rank, encode, score), the ways to run it that may differ in time and in nothing else.

        The one that is taken unasked comes first. Kinds without a choice are left out: by default, all.
        """
        return {}

    def take(self, profile: Profile, kind: str, way: str) -> None:
        """Makes launches of `buffers` that are allocated from now on go this one of the `ways`."""
        raise NotImplementedError(f"{self.backend} has one way of {kind}, not {way!r}")

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what the engine holds; no launch may follow."""
