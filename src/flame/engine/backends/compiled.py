"""The CPU default: fused C++ kernels compiled for the model (`flame.engine.kernels.cpu`), fp32.

A launch costs what its users, events and candidates cost, not what its profile could hold. Scores are bitwise the
same whatever else is in the launch, however many threads run it, and whether or not the history came as a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.backends.checks import check_users, own_buffers, own_state, prefixes_of
from flame.engine.backends.compiled_model import weight_list
from flame.engine.kernels.cpu.library import ENCODE, RANK, SCORE, LaunchError, Library, StateMemory, Workspace
from flame.engine.package import ModelPackage
from flame.engine.spec import Profile, ProfileCost
from flame.errors import InvalidLaunch

APPEND_TILE = 32
"""Whole vectors on every machine; no smaller, because every step of a history is a fingerprint."""


@dataclass(frozen=True, slots=True)
class CompiledBuffers(LaunchBuffers):
    """Launch buffers with the working memory and the threads of their launches."""

    workspace: Workspace


class CompiledEngine(Engine):
    """Runs the library that was compiled for the package's spec; every `buffers` has `threads` threads of its own.

    Shares the package's weights. Two launches at the same time need two `buffers`.
    """

    backend = "compiled"
    device = "cpu"
    precision = "fp32"

    def __init__(
        self,
        package: ModelPackage,
        profiles: Sequence[Profile],
        library: Path,
        threads: int,
        costs: Mapping[Profile, ProfileCost] | None = None,
    ) -> None:
        self.spec = package.spec
        self.profiles = tuple(profiles)
        self.costs = dict(costs or {})
        self.threads = threads
        self.append_tile = APPEND_TILE if self.spec.appendable else 0
        self._library = Library(library, weight_list(package.spec, package.weights))

    def buffers(self, profile: Profile) -> CompiledBuffers:
        """Device tensors share the memory of the host's arrays."""
        layout = self.spec.layout(profile)
        words = torch.zeros(layout.words, dtype=torch.int32)
        scores = torch.zeros(profile.users, profile.candidates, len(self.spec.tasks))
        shape = (layout.users, layout.events, layout.candidates, layout.events_start, layout.candidates_start)
        workspace = self._library.workspace(shape, self.threads)
        return CompiledBuffers(profile, layout, words.numpy(), scores.numpy(), words, scores, workspace)

    def state(self, history: int) -> HistoryState:
        """Keys and values of every layer for `history` events, and nothing encoded in it yet."""
        return self._library.state(self.spec.input.sequence_capacity(history))

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        self._launch(buffers, RANK, users, ())

    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        prefixes_of(self, buffers, len(states))
        self._launch(buffers, ENCODE, len(states), states)

    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        self._launch(buffers, SCORE, len(states), states)

    def close(self) -> None:
        self._library.close()

    def _launch(self, buffers: LaunchBuffers, mode: int, users: int, states: Sequence[HistoryState]) -> None:
        own = own_buffers(buffers, CompiledBuffers)
        check_users(own.profile, users)
        words, scores = own.device_words.data_ptr(), own.device_scores.data_ptr()
        try:
            own.workspace.launch(mode, words, users, scores, [own_state(state, StateMemory) for state in states])
        except LaunchError as error:
            raise InvalidLaunch(f"the launch was refused: {error}") from error
