"""How many requests of each priority there are, and which of them count where room is short."""

from __future__ import annotations

from flame.records import Priority


class Crowd:
    """Requests by priority. Not thread-safe.

    Batch requests are counted with the interactive ones, those by themselves: so batch is what a full server refuses
    first, and no interactive request is refused on its account. With a limit of n there are no more than 2 n requests.
    """

    __slots__ = ("_interactive", "total")

    def __init__(self) -> None:
        self.total = 0
        self._interactive = 0

    def before(self, priority: Priority) -> int:
        """Requests that take room from one of `priority`."""
        return self.total if priority == "batch" else self._interactive

    def add(self, priority: Priority, number: int = 1) -> None:
        """Counts requests in; out, where `number` is below 0."""
        self.total += number
        if priority == "interactive":
            self._interactive += number
