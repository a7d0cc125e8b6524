"""The rows of a launch, as its kernels see them: which are live is read on the device, tile by tile.

Activations are `[users, blocks, events + candidates, columns]`: event slots first, then candidates. A row is live when
its slot is below the sequence's length or its user's candidate count, both words of the user's packed header. Where the
header tells a prefix, a tile of events that lies in it counts as one without live rows: a state holds them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

Selection = Literal["all", "events", "candidates"]


class RowsShape(Protocol):
    """How many rows there are of everything; `events` and `candidates` are slots."""

    @property
    def users(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def events(self) -> int: ...
    @property
    def candidates(self) -> int: ...


class Header(NamedTuple):
    """Where counts lie in a user's packed header: its words, the candidate count, the first sequence's length.

    `prefix` is the word with the events that a state holds already, -1 where there is none.
    """

    words: int
    candidates: int
    lengths: int
    prefix: int = -1

    def constants(self) -> dict[str, int]:
        """The same as constants of a kernel."""
        return {
            "HEADER": self.words,
            "CANDIDATES": self.candidates,
            "LENGTHS": self.lengths,
            "PREFIX": self.prefix,
        }


class Tiles(NamedTuple):
    """Row tiles of one block of one user that a launch covers."""

    events: int
    candidates: int

    @classmethod
    def of(cls, rows: RowsShape, select: Selection, size: int) -> Tiles:
        """The tiles of `size` rows that hold the selected rows."""
        events = 0 if select == "candidates" else -(-rows.events // size)
        candidates = 0 if select == "events" else -(-rows.candidates // size)
        return cls(events, candidates)

    def programs(self, rows: RowsShape) -> int:
        """Row tiles of all users and blocks."""
        return rows.users * rows.blocks * (self.events + self.candidates)
