"""Where the rows of a launch lie: the one activation buffer that all kernels of a program read and write."""

from __future__ import annotations

from typing import NamedTuple

from flame.engine.spec import ModelSpec, Profile

EVENT_TILE = 128
CANDIDATE_TILE = 64


class Rows(NamedTuple):
    """Activations are `x` `[users, blocks, events + candidates, dim]`: events first, then candidates, each padded.

    Row r < events is event slot r of its block's sequence (oldest first), row events + c is candidate c. A row is
    live when its slot is below the sequence's length (its user's candidate count); rows that are not live may hold
    anything, NaN too, and cost nothing: a tile without a live row ends at once.
    """

    users: int
    blocks: int
    events: int
    candidates: int

    @classmethod
    def of(cls, spec: ModelSpec, profile: Profile) -> Rows:
        """The rows of full launches of `profile`."""
        events = spec.input.sequence_capacity(profile.history)
        return cls(
            profile.users,
            len(spec.input.sequences),
            padded(events, EVENT_TILE),
            padded(profile.candidates, CANDIDATE_TILE),
        )

    @property
    def per_block(self) -> int:
        return self.events + self.candidates


def padded(count: int, tile: int) -> int:
    """`count` rounded up to whole tiles."""
    return -(-count // tile) * tile
