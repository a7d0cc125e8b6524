"""An optional CPU backend: OpenVINO graphs with the static shapes of each profile, fp32.

A launch costs what its profile costs, however little of it is used. Candidate isolation holds within rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.backends.checks import NOT_ENCODED, check_users, own_buffers, own_state, prefixes_of
from flame.engine.backends.openvino_model import input_names
from flame.engine.inputs import ModelInputs, unpack
from flame.engine.spec import ModelSpec, Profile, ProfileCost
from flame.errors import ExecutionError, InvalidLaunch

Array = NDArray[np.generic]

KINDS = ("rank", "encode", "score")


def graph_file(profile: Profile, kind: str) -> str:
    """The name of a graph's file in the artifact; its weights lie beside it."""
    return f"{kind}-{profile}.xml"


class OpenVinoState:
    """One user's encoded history: the model's tensors without the user dimension, once encoded."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = parts
        self.encoded = False

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class _Launch:
    """One graph with its request, its input arrays and where they come from."""

    def __init__(self, graph: openvino.CompiledModel, names: Sequence[str], inputs: ModelInputs) -> None:
        self._request = graph.create_infer_request()
        self._inputs = inputs
        self._names = names
        self.arrays: list[Array] = [np.zeros(port.shape, port.element_type.to_dtype()) for port in graph.inputs]
        for index, array in enumerate(self.arrays):
            self._request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))

    @property
    def state_arrays(self) -> Sequence[Array]:
        """The arguments that a state fills: `[users, ...]` each."""
        return self.arrays[len(self._names) :]

    def run(self) -> list[Array]:
        """Copies the launch's inputs in, runs, and gives the outputs, which the next run overwrites."""
        for name, array in zip(self._names, self.arrays, strict=False):
            np.copyto(array, getattr(self._inputs, name).numpy())
        try:
            self._request.infer()
        except RuntimeError as error:
            raise ExecutionError(f"the launch failed: {error}") from error
        return [tensor.data for tensor in self._request.output_tensors]


@dataclass(frozen=True, slots=True)
class OpenVinoBuffers(LaunchBuffers):
    """Launch buffers with a request of each graph."""

    launches: Mapping[str, _Launch]


class OpenVinoEngine(Engine):
    """Runs the graphs in `folder`; every `buffers` has requests of its own."""

    backend = "openvino"
    device = "cpu"
    precision = "fp32"

    def __init__(
        self,
        spec: ModelSpec,
        profiles: Sequence[Profile],
        folder: Path,
        threads: int,
        costs: Mapping[Profile, ProfileCost] | None = None,
    ) -> None:
        self.spec = spec
        self.profiles = tuple(profiles)
        self.costs = dict(costs or {})
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        core = openvino.Core()
        self._graphs = {
            (profile, kind): core.compile_model(folder / graph_file(profile, kind), "CPU", options)
            for profile in profiles
            for kind in KINDS
        }

    def buffers(self, profile: Profile) -> OpenVinoBuffers:
        """Device tensors share the memory of the host's arrays. Raises `ExecutionError` for an unknown profile."""
        if profile not in self.profiles:
            raise ExecutionError(f"openvino has no graph for profile {profile}, only {self.profiles}")
        layout = self.spec.layout(profile)
        words = torch.zeros(layout.words, dtype=torch.int32)
        scores = torch.zeros(profile.users, profile.candidates, len(self.spec.tasks))
        inputs = unpack(words, layout)
        launches = {kind: _Launch(self._graphs[profile, kind], input_names(kind, inputs), inputs) for kind in KINDS}
        return OpenVinoBuffers(profile, layout, words.numpy(), scores.numpy(), words, scores, launches)

    def state(self, history: int) -> HistoryState:
        """Room for what a profile of `history` events encodes. Raises `ExecutionError` where there is none."""
        for (profile, kind), graph in self._graphs.items():
            if kind == "encode" and profile.history == history:
                return OpenVinoState([np.zeros(port.shape[1:], port.element_type.to_dtype()) for port in graph.outputs])
        raise ExecutionError(f"openvino has no profile for a history of {history} events, only {self.profiles}")

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        self._write(buffers, self._launch(buffers, "rank", users).run(), users)

    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        prefixes_of(self, buffers, len(states))
        outputs = self._launch(buffers, "encode", len(states)).run()
        for user, state in enumerate(states):
            own = own_state(state, OpenVinoState)
            for part, output in zip(own.parts, outputs, strict=True):
                _paste(part, output[user])
            own.encoded = True

    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        launch = self._launch(buffers, "score", len(states))
        for user, state in enumerate(states):
            own = own_state(state, OpenVinoState)
            if not own.encoded:
                raise InvalidLaunch(NOT_ENCODED)
            for array, part in zip(launch.state_arrays, own.parts, strict=True):
                _paste(array[user], part)
        self._write(buffers, launch.run(), len(states))

    def close(self) -> None:
        self._graphs = {}

    def _launch(self, buffers: LaunchBuffers, kind: str, users: int) -> _Launch:
        own = own_buffers(buffers, OpenVinoBuffers)
        check_users(own.profile, users)
        return own.launches[kind]

    def _write(self, buffers: LaunchBuffers, outputs: Sequence[Array], users: int) -> None:
        buffers.scores[:users] = outputs[0][:users]


def _paste(target: Array, source: Array) -> None:
    """Copies `source` into the start of `target`, which may have more events and is masked beyond them."""
    if any(mine < theirs for mine, theirs in zip(target.shape, source.shape, strict=True)):
        raise ExecutionError(f"a state of shape {source.shape} does not fit into {target.shape}")
    target[tuple(slice(size) for size in source.shape)] = source
