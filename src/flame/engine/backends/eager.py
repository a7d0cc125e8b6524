"""The oracle: the model as plain PyTorch, fp32, on a CPU or a CUDA device. Every other engine is compared with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.backends.checks import NOT_ENCODED, check_prefix, check_users, own_state, prefixes_of
from flame.engine.inputs import ModelInputs, unpack
from flame.engine.models import ModelState
from flame.engine.models.head import activate
from flame.engine.package import ModelPackage
from flame.engine.spec import Profile, ProfileCost
from flame.errors import BackendUnavailable, ExecutionError, InvalidLaunch

APPEND_TILE = 32
"""Any number would do: appended histories are found in steps of so many events, and each step is a fingerprint."""


class EagerState:
    """One user's encoded history: the model's tensors, each `[1, ...]`, after the first `encode` into it.

    `events` is how many events of the first sequence they hold.
    """

    def __init__(self, history: int, nbytes: int) -> None:
        self.history = history
        self.nbytes = nbytes
        self.tensors: ModelState | None = None
        self.events = 0


class EagerEngine(Engine):
    """Runs any shape within the model's limits: `profiles` are those it was asked for, and others work as well.

    `costs` are what the caller measured; empty until then. Sharing the package's weights, it takes no memory of its
    own on a CPU.
    """

    backend = "eager"
    precision = "fp32"

    def __init__(
        self,
        package: ModelPackage,
        profiles: Sequence[Profile],
        device: str = "cpu",
        costs: Mapping[Profile, ProfileCost] | None = None,
    ) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise BackendUnavailable(f"engine.device is {device!r}, but PyTorch finds no CUDA device here")
        self.spec = package.spec
        self.device = device
        self.profiles = tuple(profiles)
        self.costs = dict(costs or {})
        self.append_tile = APPEND_TILE if self.spec.appendable else 0
        self._model = package.model(device)
        self._state_bytes: dict[int, int] = {}

    def buffers(self, profile: Profile) -> LaunchBuffers:
        """Host memory is pinned where the device is a GPU; a CPU's device tensors are the host's memory."""
        layout = self.spec.layout(profile)
        pinned = self.device != "cpu"
        words = torch.zeros(layout.words, dtype=torch.int32, pin_memory=pinned)
        scores = torch.zeros(profile.users, profile.candidates, len(self.spec.tasks), pin_memory=pinned)
        device_words, device_scores = words.to(self.device), scores.to(self.device)
        return LaunchBuffers(profile, layout, words.numpy(), scores.numpy(), device_words, device_scores)

    def state(self, history: int) -> HistoryState:
        """A state without tensors yet; its size is found by encoding an empty history of this size once."""
        if history not in self._state_bytes:
            self._state_bytes[history] = self._measure_state(history)
        return EagerState(history, self._state_bytes[history])

    @torch.inference_mode()
    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        inputs = self._inputs(buffers, users)
        with _as_execution_error():
            logits = self._model.rank(inputs)
        self._write(buffers, logits)

    @torch.inference_mode()
    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        inputs = self._inputs(buffers, len(states))
        own = [own_state(state, EagerState) for state in states]
        for state in own:
            if state.history < buffers.profile.history:
                raise InvalidLaunch(f"a state for {state.history} events cannot take profile {buffers.profile}")
        prefixes = prefixes_of(self, buffers, len(states))
        encoded = self._append(inputs, own, prefixes) if any(prefixes) else self._encode(inputs)
        for user, state in enumerate(own):
            state.tensors, state.events = encoded[user], int(inputs.lengths[user, 0])

    @torch.inference_mode()
    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        """One user after the other, because states of different profiles differ in shape."""
        inputs = self._inputs(buffers, len(states))
        encoded = [_tensors(state) for state in states]
        with _as_execution_error():
            logits = [self._model.score(state, inputs.slice(user, user + 1)) for user, state in enumerate(encoded)]
        self._write(buffers, torch.cat(logits))

    def close(self) -> None:
        del self._model

    def _encode(self, inputs: ModelInputs) -> list[ModelState]:
        """The states of all users, in one go."""
        with _as_execution_error():
            encoded = _state_of(self._model.encode(inputs), inputs.users)
        return [tuple(part[user : user + 1].clone() for part in encoded) for user in range(inputs.users)]

    def _append(self, inputs: ModelInputs, states: Sequence[EagerState], prefixes: Sequence[int]) -> list[ModelState]:
        """The states of all users, one after the other, because prefixes differ."""
        found = []
        for user, (state, prefix) in enumerate(zip(states, prefixes, strict=True)):
            own = inputs.slice(user, user + 1)
            check_prefix(prefix, state.events)
            with _as_execution_error():
                encoded = self._model.append(_tensors(state), own, prefix) if prefix else self._model.encode(own)
                # Parts of it may be views of the launch's words, which the next launch writes over.
                found.append(tuple(part.clone() for part in _state_of(encoded, 1)))
        return found

    def _inputs(self, buffers: LaunchBuffers, users: int) -> ModelInputs:
        check_users(buffers.profile, users)
        if self.device != "cpu":
            # Waits: `encode` returns before the GPU is done, and the caller fills the words again.
            buffers.device_words.copy_(torch.from_numpy(buffers.words))
        return unpack(buffers.device_words, buffers.layout).first(users)

    def _write(self, buffers: LaunchBuffers, logits: Tensor) -> None:
        """Scores after each task's activation; waits for a GPU."""
        users = logits.shape[0]
        if logits.shape[1:] != buffers.device_scores.shape[1:]:
            raise ExecutionError(
                f"the model gave logits {tuple(logits.shape)}, "
                f"expected [users, candidates, tasks] = {(users, *buffers.device_scores.shape[1:])}"
            )
        buffers.device_scores[:users] = activate(logits, self.spec.tasks)
        if self.device != "cpu":
            torch.from_numpy(buffers.scores)[:users].copy_(buffers.device_scores[:users])

    @torch.inference_mode()
    def _measure_state(self, history: int) -> int:
        buffers = self.buffers(Profile(1, history, 1))
        inputs = self._inputs(buffers, 1)
        with _as_execution_error():
            encoded = _state_of(self._model.encode(inputs), 1)
        return sum(part.numel() * part.element_size() for part in encoded)


@contextmanager
def _as_execution_error() -> Iterator[None]:
    """Failures of the model, which may be anybody's code, in our own words."""
    try:
        yield
    except Exception as error:
        raise ExecutionError(f"the launch failed: {type(error).__name__}: {error}") from error


def _state_of(encoded: object, users: int) -> ModelState:
    """What a model's `encode` gave, which may be anybody's code, as the state it has to be."""
    parts = tuple(encoded) if isinstance(encoded, tuple | list) else ()
    if not parts or not all(isinstance(part, Tensor) and part.ndim and len(part) == users for part in parts):
        raise TypeError(f"encode must give a tuple of tensors [users, ...] with users = {users}; {_told(encoded)}")
    return parts


def _told(encoded: object) -> str:
    """What it gave instead."""
    if isinstance(encoded, tuple | list):
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in encoded]
        return f"it gave a {type(encoded).__name__} of {shapes}"
    return f"it gave a {type(encoded).__name__}"


def _tensors(state: HistoryState) -> ModelState:
    own = own_state(state, EagerState)
    if own.tensors is None:
        raise InvalidLaunch(NOT_ENCODED)
    return own.tensors
