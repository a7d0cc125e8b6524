"""Launches for checking an engine: made of given users and candidates, in any arrangement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flame.engine.backends.base import Engine, LaunchBuffers
from flame.engine.sampling import NAN_WORD
from flame.engine.spec import Profile
from flame.layout import CANDIDATES, EVENT_AGE, LENGTHS, SCENARIO, PackedLayout, Words
from flame.records import Scores


class Place(NamedTuple):
    """A user of a packed buffer, and which of its candidates in which order."""

    user: int
    candidates: Sequence[int]


class Packed(NamedTuple):
    """A packed buffer and what it holds."""

    layout: PackedLayout
    words: Words
    users: int

    @property
    def counts(self) -> list[int]:
        """Candidates of each user."""
        return [int(count) for count in self.layout.views(self.words).header[: self.users, CANDIDATES]]


def repack(source: Packed, target: PackedLayout, places: Sequence[Place], filler: int = NAN_WORD) -> Packed:
    """A new buffer with the chosen users and candidates; every word that means nothing is `filler`."""
    record = source.layout.record
    words = np.full(target.words, filler, np.int32)
    old, new = source.layout.views(source.words), target.views(words)
    new.header[:, [SCENARIO, CANDIDATES]] = 0
    new.header[:, LENGTHS : record.user_start] = 0
    for slot, (user, candidates) in enumerate(places):
        new.header[slot] = old.header[user]
        new.header[slot, CANDIDATES] = len(candidates)
        new.candidates[slot, : len(candidates)] = old.candidates[user, list(candidates)]
        for sequence, length in enumerate(old.header[user, record.lengths]):
            new.events[slot, sequence, :length] = old.events[user, sequence, :length]
    return Packed(target, words, len(places))


def oldest(source: Packed, counts: Sequence[int]) -> Packed:
    """The same users when their one sequence had no more than its oldest `counts` events."""
    words = source.words.copy()
    views = source.layout.views(words)
    for user, count in enumerate(counts):
        events = views.events[user, 0]
        views.header[user, LENGTHS] = count
        events[count:] = NAN_WORD
        events[:count, EVENT_AGE] -= events[count - 1, EVENT_AGE] if count else 0
    return Packed(source.layout, words, source.users)


class Probe:
    """Runs packed buffers through an engine, in buffers of its own, one launch at a time.

    `profiles` are those to check it in: all it has by default.
    """

    def __init__(self, engine: Engine, profiles: Sequence[Profile] | None = None) -> None:
        self.engine = engine
        self.profiles = tuple(profiles or engine.profiles)
        self._buffers: dict[Profile, LaunchBuffers] = {}

    def rank(self, profile: Profile, packed: Packed) -> list[Scores]:
        """Scores of each user `[its candidates, tasks]`, from one `rank` launch."""
        buffers = self._fill(profile, packed)
        self.engine.rank(buffers, packed.users)
        return _scores(buffers, packed)

    def rank_alone(self, history: int, packed: Packed, chosen: Sequence[Sequence[int]]) -> list[Scores]:
        """Scores of the `chosen` candidates of each user, from a launch for every user with just room for them.

        It takes the memory of one user, and an engine that runs any shape. `history` is that of the packed profile.
        """
        return [self._alone(history, packed, Place(*place)) for place in enumerate(chosen)]

    def _alone(self, history: int, packed: Packed, place: Place) -> Scores:
        profile = Profile(1, history, len(place.candidates))
        return self.rank(profile, repack(packed, self.engine.spec.layout(profile), [place]))[0]

    def encode_and_score(self, profile: Profile, packed: Packed) -> list[Scores]:
        """The same from two launches; in each, what it must not read is garbage."""
        states = [self.engine.state(profile.history) for _ in range(packed.users)]
        buffers = self._fill(profile, packed)
        packed.layout.views(buffers.words).candidates[:] = NAN_WORD
        self.engine.encode(buffers, states)
        buffers = self._fill(profile, packed)
        packed.layout.views(buffers.words).events[:] = NAN_WORD
        self.engine.score(buffers, states)
        return _scores(buffers, packed)

    def append_and_score(self, profile: Profile, packed: Packed, before: Sequence[int]) -> list[Scores]:
        """As `encode_and_score`, each history in two steps: its oldest `before` events alone, then what was appended.

        Needs an engine with an `append_tile`. Of the events that the states hold by then, the second step gets the
        ages alone.
        """
        states = [self.engine.state(profile.history) for _ in range(packed.users)]
        self.engine.encode(self._fill(profile, oldest(packed, before)), states)
        buffers = self._fill(profile, packed)
        views, tile = packed.layout.views(buffers.words), self.engine.append_tile
        for user, count in enumerate(before):
            prefix = count // tile * tile
            views.header[user, packed.layout.record.prefix] = prefix
            views.events[user, 0, :prefix, np.arange(views.events.shape[3]) != EVENT_AGE] = NAN_WORD
        self.engine.encode(buffers, states)
        self.engine.score(self._fill(profile, packed), states)
        return _scores(buffers, packed)

    def _fill(self, profile: Profile, packed: Packed) -> LaunchBuffers:
        """The profile's buffers with `packed` in them, and scores that betray a slot nobody wrote."""
        if profile not in self._buffers:
            self._buffers[profile] = self.engine.buffers(profile)
        buffers = self._buffers[profile]
        buffers.words[: packed.layout.words] = packed.words
        buffers.scores[:] = np.nan
        return buffers


def _scores(buffers: LaunchBuffers, packed: Packed) -> list[Scores]:
    return [buffers.scores[user, :count].copy() for user, count in enumerate(packed.counts)]
