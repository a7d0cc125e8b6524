"""Launch buffers of the fused backend: pinned host memory, device memory, and what is recorded over both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flame.engine.backends.base import LaunchBuffers
from flame.engine.backends.fused.lanes import Lane, Steps
from flame.engine.backends.fused.program import LaunchMemory, Program
from flame.engine.kernels.rows import Selection
from flame.engine.spec import ModelSpec, Profile
from flame.errors import InvalidLaunch
from flame.layout import LENGTHS, SOURCE_WORDS, PackedLayout, Words

KINDS = ("rank", "encode", "score")


class Host:
    """The host side of a launch; `states` int64 `[users]` are the addresses that `encode` and `score` work on.

    `sources` int64 `[users, SOURCE_WORDS]` tell where events and candidates lie: in `words`, to begin with.
    """

    def __init__(self, lane: Lane, memory: LaunchMemory, layout: PackedLayout) -> None:
        self.words = lane.host(tuple(memory.words.shape), torch.int32)
        self.scores = lane.host(tuple(memory.scores.shape), torch.float32)
        self.sources = lane.host((memory.profile.users, SOURCE_WORDS), torch.int64)
        self.sources.copy_(torch.from_numpy(layout.sources(self.words.numpy())))
        self.states = lane.host(tuple(memory.states.shape), torch.int64)
        self.states.copy_(memory.own_states)


@dataclass(frozen=True, slots=True)
class FusedBuffers(LaunchBuffers):
    """Launch buffers with their recorded launches by kind; `owner` is the engine's mark.

    `memory` has to outlive the launches: a captured graph knows addresses only.
    `header` is a view of `words`. `states` is the host's table of addresses; slots without a state point at the
    workspace's own, `own_states`, where an unused slot may write its header.
    """

    owner: object
    memory: LaunchMemory
    header: Words
    limits: NDArray[np.uint32]
    states: NDArray[np.int64]
    own_states: NDArray[np.int64]
    launches: Mapping[str, Steps]

    def use(self, kind: str, users: int) -> None:
        """Makes the slots beyond `users` unused. Raises `InvalidLaunch` for a header that would read out of bounds."""
        self.header[users:] = 0
        prefix = self.layout.record.prefix
        if prefix is not None and kind == "rank":
            # Its kernels are those of an encode.
            self.header[:, prefix] = 0
        # A score reads no events, and the lengths are the states'.
        words = LENGTHS if kind == "score" else len(self.limits)
        given = self.header[:users, :words].view(np.uint32)
        if (given > self.limits[:words]).any():
            user = int((given > self.limits[:words]).any(axis=1).argmax())
            raise InvalidLaunch(
                f"slot {user} of profile {self.profile} has scenario, candidates and lengths "
                f"{self.header[user, :words].tolist()}; the most are {self.limits[:words].tolist()}"
            )

    def point(self, addresses: list[int]) -> None:
        """Sets the states of the first slots."""
        self.states[:] = self.own_states
        self.states[: len(addresses)] = addresses


def allocate(spec: ModelSpec, program: Program, profile: Profile, lane: Lane, owner: object) -> FusedBuffers:
    """Allocates and records everything that launches of `profile` need."""
    layout = spec.layout(profile)
    memory = program.memory(profile)
    host = Host(lane, memory, layout)
    steps = _steps(program, memory, host)
    words: Words = host.words.numpy()
    return FusedBuffers(
        profile=profile,
        layout=layout,
        words=words,
        scores=host.scores.numpy(),
        device_words=memory.words,
        device_scores=memory.scores,
        sources=host.sources.numpy(),
        owner=owner,
        memory=memory,
        header=layout.views(words).header,
        limits=_limits(spec, layout),
        states=host.states.numpy(),
        own_states=memory.own_states.cpu().numpy().copy(),
        launches={kind: lane.record(step) for kind, step in steps.items()},
    )


def _limits(spec: ModelSpec, layout: PackedLayout) -> NDArray[np.uint32]:
    """The largest values of the first words of a header: scenario, candidates, lengths."""
    lengths = [layout.events] * layout.record.sequences
    return np.array([spec.input.scenarios - 1, layout.candidates, *lengths], np.uint32)


def _steps(program: Program, memory: LaunchMemory, host: Host) -> dict[str, Steps]:
    """What each kind of launch copies and runs, in order; only what it reads is copied."""

    def gather(select: Selection) -> Steps:
        return lambda: program.gather(memory, host.words, host.sources, select)

    states = _Copy(memory.states, host.states)
    scores = _Copy(host.scores, memory.scores)
    return {
        "rank": _InOrder(gather("all"), lambda: program.rank(memory), scores),
        "encode": _InOrder(states, gather("events"), lambda: program.encode(memory)),
        "score": _InOrder(states, gather("candidates"), lambda: program.score(memory), scores),
    }


class _Copy:
    """A copy between host and device; views are made once, as a launch without a graph makes it again and again."""

    def __init__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._target = target
        self._source = source

    def __call__(self) -> None:
        self._target.copy_(self._source, non_blocking=True)


class _InOrder:
    """Several steps as one."""

    def __init__(self, *steps: Steps) -> None:
        self._steps = steps

    def __call__(self) -> None:
        for step in self._steps:
            step()
