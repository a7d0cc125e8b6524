"""Room for encoded histories: allocated when the orchestrator starts, lent to requests that are scored in slices."""

from __future__ import annotations

from flame.engine.backends.base import Engine, HistoryState
from flame.orchestrator.profiles import ProfileSet


class StatePool:
    """States by history length, a fixed number of each. Not thread-safe: the schedule's lock guards it.

    There is one state for every slot of every executor. More cannot be in use: new requests are planned only when no
    planned launch is ready, so each request that holds a state has a launch that runs on some executor.
    """

    def __init__(self, engine: Engine, profiles: ProfileSet, executors: int) -> None:
        self._free: dict[int, list[HistoryState]] = {
            tier.history: [engine.state(tier.history) for _ in range(executors * tier.widest)]
            for tier in profiles.tiers
        }

    def free(self) -> dict[int, int]:
        """How many states of each history length can be taken now."""
        return {history: len(states) for history, states in self._free.items()}

    def take(self, history: int) -> HistoryState:
        """A state for histories of up to `history` events; it may hold another request's history until encoded."""
        return self._free[history].pop()

    def give(self, history: int, state: HistoryState) -> None:
        """Takes a state back that nobody reads any more."""
        self._free[history].append(state)
