"""The engine of the fused backend: programs of GPU kernels, captured once for every launch buffer.

Everything a launch needs is allocated and captured by `buffers`; a launch is then the kernels, the first of which
fetches what it reads, one copy of the scores, and one event to wait for. Scores are the same bits whatever else is in
the launch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from flame.engine.backends.base import Engine, HistoryState, LaunchBuffers
from flame.engine.backends.checks import (
    NOT_ENCODED,
    check_prefix,
    check_users,
    own_buffers,
    own_state,
    prefixes_of,
)
from flame.engine.backends.fused.buffers import KINDS, FusedBuffers, allocate
from flame.engine.backends.fused.lanes import Lane
from flame.engine.backends.fused.program import Program, Tunable
from flame.engine.backends.fused.rows import EVENT_TILE, padded
from flame.engine.backends.fused.state import DeviceState, new_state
from flame.engine.kernels.kernel import KernelError
from flame.engine.spec import ModelSpec, Profile, ProfileCost
from flame.errors import ExecutionError, InvalidLaunch
from flame.layout import LENGTHS


class FusedEngine(Engine):
    """Runs `program` on lanes, one for every `buffers`; two threads may launch at the same time on two of them."""

    backend = "fused"
    graph_safe = True
    gathers = True

    def __init__(
        self,
        spec: ModelSpec,
        profiles: Sequence[Profile],
        program: Program,
        *,
        device: torch.device,
        precision: str,
        lane: Callable[[], Lane],
        at_close: Callable[[], None] = lambda: None,
        costs: Mapping[Profile, ProfileCost] | None = None,
    ) -> None:
        """`lane` makes a lane; `at_close` frees what the caller made for the program."""
        self.spec = spec
        self.device = str(device)
        self.precision = precision
        self.profiles = tuple(profiles)
        self.costs = dict(costs or {})
        self.append_tile = program.append_tile
        self._program: Program | None = program
        self._device = device
        self._new_lane = lane
        self._at_close = at_close
        self._mark = object()
        self._lanes: weakref.WeakSet[Lane] = weakref.WeakSet()

    @property
    def program(self) -> Program:
        """What launches are made of, for whoever measures it alone. Raises `ExecutionError` once it is closed."""
        return self._open_program()

    def buffers(self, profile: Profile) -> FusedBuffers:
        """Pinned host memory, device memory, and all launches of `profile` captured."""
        program = self._open_program()
        with _as_execution_error(f"buffers of profile {profile}"):
            lane = self._new_lane()
            self._lanes.add(lane)
            return allocate(self.spec, program, profile, lane, self._mark)

    def state(self, history: int) -> HistoryState:
        """Room for `history` events, in whole tiles, on the device."""
        program = self._open_program()
        capacity = padded(self.spec.input.sequence_capacity(history), EVENT_TILE)
        with _as_execution_error(f"a state for {history} events"):
            return new_state(capacity, program.state_bytes(capacity), self._device, self._mark)

    def ways(self, profile: Profile) -> Mapping[str, Sequence[str]]:
        """The program's, where it has a choice."""
        program = self.program
        if not isinstance(program, Tunable):
            return {}
        ways = {kind: tuple(program.ways(profile, kind)) for kind in KINDS}
        return {kind: names for kind, names in ways.items() if len(names) > 1}

    def take(self, profile: Profile, kind: str, way: str) -> None:
        program = self.program
        assert isinstance(program, Tunable), "a way was taken of a program that has one"
        program.take(profile, kind, way)

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        self._launch(self._own(buffers, users), "rank", users)

    def encode(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        launch = self._own(buffers, len(states))
        own = [self._own_state(state) for state in states]
        for state, prefix in zip(own, prefixes_of(self, launch, len(own)), strict=True):
            if state.capacity < launch.memory.rows.events:
                raise InvalidLaunch(f"a state for {state.capacity} events cannot take profile {launch.profile}")
            check_prefix(prefix, state.events)
            state.encoded, state.events = False, 0
        launch.point([state.address for state in own])
        self._launch(launch, "encode", len(own))
        for state, events in zip(own, launch.header[:, LENGTHS].tolist(), strict=False):
            state.encoded, state.events = True, events

    def score(self, buffers: LaunchBuffers, states: Sequence[HistoryState]) -> None:
        launch = self._own(buffers, len(states))
        own = [self._own_state(state) for state in states]
        if not all(state.encoded for state in own):
            raise InvalidLaunch(NOT_ENCODED)
        launch.point([state.address for state in own])
        self._launch(launch, "score", len(own))

    def close(self) -> None:
        """Frees the weights, the graphs and the machine code; what `buffers` and `state` gave is its holder's."""
        if self._program is None:
            return
        self._program = None
        for lane in list(self._lanes):
            lane.close()
        self._at_close()

    def _launch(self, buffers: FusedBuffers, kind: str, users: int) -> None:
        self._open_program()
        buffers.use(kind, users)
        with _as_execution_error("the launch"):
            buffers.launches[kind]()

    def _open_program(self) -> Program:
        if self._program is None:
            raise InvalidLaunch("the engine is closed")
        return self._program

    def _own(self, buffers: LaunchBuffers, users: int) -> FusedBuffers:
        own = own_buffers(buffers, FusedBuffers)
        if own.owner is not self._mark:
            raise InvalidLaunch("buffers were made by another engine")
        check_users(own.profile, users)
        return own

    def _own_state(self, state: HistoryState) -> DeviceState:
        own = own_state(state, DeviceState)
        if own.owner is not self._mark:
            raise InvalidLaunch("a state was made by another engine")
        return own


@contextmanager
def _as_execution_error(what: str) -> Iterator[None]:
    """What PyTorch and the driver say, in our own words."""
    try:
        yield
    except (RuntimeError, KernelError) as error:
        raise ExecutionError(f"{what} failed: {error}") from error
