"""Who is served in which round, where users take turns: what of the work in flight is ahead of one more request."""

from __future__ import annotations


class Rounds:
    """Requests in flight by user. A user's first is served in the first round, their second in the second, and so on.

    Not thread-safe.
    """

    __slots__ = ("_held", "_rounds", "total")

    def __init__(self) -> None:
        self._held: dict[int, int] = {}
        self._rounds: list[int] = []  # how many users have a request in each round
        self.total = 0

    def enter(self, user: int) -> None:
        """Counts a request in, in the next round of its user."""
        held = self._held.get(user, 0)
        if held == len(self._rounds):
            self._rounds.append(0)
        self._rounds[held] += 1
        self._held[user] = held + 1
        self.total += 1

    def leave(self, user: int) -> None:
        """Counts a request out, whichever it was: those behind it move up."""
        held = self._held[user] - 1
        self._rounds[held] -= 1
        if not self._rounds[-1]:
            self._rounds.pop()
        if held:
            self._held[user] = held
        else:
            del self._held[user]
        self.total -= 1

    def held(self, user: int) -> int:
        """Requests of one user."""
        return self._held.get(user, 0)

    def ahead(self, user: int) -> float:
        """The share of all requests that is served before one more of `user`, if no others come."""
        if not self.total:
            return 0.0
        held = self._held.get(user, 0)
        return (sum(self._rounds[: held + 1]) if held else self._rounds[0]) / self.total
