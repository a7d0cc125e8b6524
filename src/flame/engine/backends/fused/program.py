"""The contract of a program: a model as launches on the current stream, with its weights on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from flame.engine.backends.fused.rows import Rows
from flame.engine.kernels.kernel import Kernel
from flame.engine.kernels.rows import Selection
from flame.engine.spec import Profile

MOST_LAUNCHES = 4
"""Launches that run at the same time on one device, of all engines of a process: kernels whose programs wait for each
other count on it."""


@dataclass(frozen=True, slots=True)
class LaunchMemory:
    """What the launches of one profile work on: static device memory, so that a graph can be captured over it.

    `words` int32 `[layout.words]` the packed input; `scores` fp32 `[users, candidates, tasks]` as the profile says;
    `states` int64 `[users]` addresses of the states that encode writes and score reads; `own_states` int64 `[users]`
    addresses of the workspace's own, which `rank` uses; `x` `[users, blocks, rows, dim]` in the program's precision.
    A program keeps further memory by its own subclass.
    """

    profile: Profile
    rows: Rows
    words: torch.Tensor
    scores: torch.Tensor
    states: torch.Tensor
    own_states: torch.Tensor
    x: torch.Tensor


class Program(Protocol):
    """Every launch method only enqueues kernels on the current stream: no allocation, no wait, no host read.

    `append_tile` is the engine's: where it is not 0, `encode` leaves the header's prefix in `states` as it is.
    """

    append_tile: int

    def kernels(self) -> Sequence[Kernel]:
        """All kernels that its launches name; known without a GPU."""

    def state_bytes(self, capacity: int) -> int:
        """Bytes of a state's body for `capacity` events per sequence (`flame.engine.backends.fused.state`)."""

    def memory(self, profile: Profile) -> LaunchMemory:
        """Allocates everything that launches of `profile` need."""

    def gather(self, memory: LaunchMemory, header: torch.Tensor, sources: torch.Tensor, select: Selection) -> None:
        """Fills `memory.words` with what the other launches read of it, from the host's memory: headers from `header`,
        the selected sections from where `sources` `[users, SOURCE_WORDS]` say. It comes before anything else."""

    def rank(self, memory: LaunchMemory) -> None:
        """Encodes into `own_states` and scores from them."""

    def tokens(self, memory: LaunchMemory) -> None:
        """The first part of `rank`: events and candidates as tokens in `x`."""

    def layers(self, memory: LaunchMemory) -> None:
        """The second part of `rank`: the last layer's candidates in `x`, from the tokens there. For measuring."""

    def encode(self, memory: LaunchMemory) -> None:
        """Writes `states`, lengths included; reads header and events of `words`."""

    def score(self, memory: LaunchMemory) -> None:
        """Scores against `states`; reads header and candidates of `words`."""


@runtime_checkable
class Tunable(Protocol):
    """A program with several ways to run its launches, all with the same bits: the GPU decides which is fastest."""

    def ways(self, profile: Profile, kind: str) -> Sequence[str]:
        """Names of the ways of such launches, the one that is taken unasked first; none or one: no choice."""

    def take(self, profile: Profile, kind: str, way: str) -> None:
        """Makes launches that are enqueued from now on go this way."""
