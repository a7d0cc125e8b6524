"""Which kept states hold the oldest events of a history: found by the fingerprints of its prefixes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Generic, TypeVar

State = TypeVar("State")


class PrefixIndex(Generic[State]):
    """States by each of their prefixes; several may begin with the same events. Not thread-safe.

    Prefixes are fingerprints of the oldest tile of events, of the oldest two, and so on.
    """

    def __init__(self) -> None:
        self._states: dict[bytes, dict[State, None]] = {}

    def add(self, state: State, prefixes: Sequence[bytes]) -> None:
        """Lets `state` be found by all of its prefixes."""
        for prefix in prefixes:
            self._states.setdefault(prefix, {})[state] = None

    def remove(self, state: State, prefixes: Sequence[bytes]) -> None:
        """Undoes `add`."""
        for prefix in prefixes:
            states = self._states[prefix]
            del states[state]
            if not states:
                del self._states[prefix]

    def longest(self, prefixes: Sequence[bytes]) -> tuple[State | None, int]:
        """The state with the most of these prefixes, of several the one added last, and how many those are."""
        # Who has a prefix has all shorter ones as well, so those that are there come first.
        count = bisect_left(prefixes, True, key=lambda prefix: prefix not in self._states)
        return (next(reversed(self._states[prefixes[count - 1]])), count) if count else (None, 0)
