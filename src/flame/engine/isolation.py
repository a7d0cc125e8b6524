"""Candidate isolation: every arrangement of a launch that must not change a candidate's score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from flame.engine.probe import Packed, Place, Probe, repack
from flame.engine.sampling import NAN_WORD
from flame.engine.spec import Profile
from flame.records import Scores

Choice = NDArray[np.int64]


class Difference(NamedTuple):
    """What one user should have got, and did get, `[candidates, tasks]` each."""

    check: str
    expected: Scores
    found: Scores


class Rearrangements:
    """One launch, run again in every arrangement; `expected` is what `rank` gave for it, by user."""

    def __init__(
        self, probe: Probe, profile: Profile, packed: Packed, expected: Sequence[Scores], rng: Generator
    ) -> None:
        self._probe = probe
        self._profile = profile
        self._packed = packed
        self._expected = expected
        self._rng = rng
        self._counts = packed.counts
        self._all = [np.arange(count) for count in self._counts]
        layout = packed.layout
        self._lengths = layout.views(packed.words).header[: packed.users, layout.record.lengths]

    def differences(self) -> Iterator[Difference]:
        """Every check that the probe's profiles allow."""
        yield from self._same_launch("repeat", self._all)
        yield from self._same_launch("permutation", [self._rng.permutation(count) for count in self._counts])
        yield from self._same_launch("subset", [self._some(count) for count in self._counts])
        yield from self._split()
        for filler in (0, -1, int(self._rng.integers(-(2**31), 2**31))):
            yield from self._same_launch("padding", self._all, filler)
        yield from self._other_users()
        yield from self._other_profile()
        for user, scores in enumerate(self._probe.encode_and_score(self._profile, self._packed)):
            yield Difference("encode + score", self._expected[user], scores)
        yield from self._append()

    def _same_launch(self, check: str, choices: Sequence[Choice], filler: int = NAN_WORD) -> Iterator[Difference]:
        """All users in their slots, each with some of its candidates in some order."""
        places = [Place(user, choice.tolist()) for user, choice in enumerate(choices)]
        yield from self._launch(check, self._profile, places, filler)

    def _split(self) -> Iterator[Difference]:
        """A request in two launches."""
        middles = [int(self._rng.integers(1, count + 1)) for count in self._counts]
        yield from self._same_launch("split", [own[:middle] for own, middle in zip(self._all, middles, strict=True)])
        rest = [own[middle:] for own, middle in zip(self._all, middles, strict=True)]
        if any(len(choice) for choice in rest):
            yield from self._same_launch("split", rest)

    def _other_users(self) -> Iterator[Difference]:
        """Each user alone, and all of them in other slots."""
        if self._profile.users == 1:
            return
        places = [Place(user, choice.tolist()) for user, choice in enumerate(self._all)]
        for place in places:
            yield from self._launch("other users", self._profile, [place])
        yield from self._launch("other users", self._profile, places[::-1])

    def _other_profile(self) -> Iterator[Difference]:
        """Each user alone in another profile that it fits into."""
        for user, choice in enumerate(self._all):
            others = [profile for profile in self._probe.profiles if self._fits(user, profile)]
            if others:
                profile = others[int(self._rng.integers(len(others)))]
                yield from self._launch("other profile", profile, [Place(user, choice.tolist())])

    def _append(self) -> Iterator[Difference]:
        """Histories that were encoded when they were shorter, and have grown by some events or by none."""
        tile, lengths = self._probe.engine.append_tile, self._lengths[:, 0]
        if not tile or lengths.max() < tile:
            return
        before = [int(self._rng.integers(min(tile, length), length + 1)) for length in lengths]
        for user, scores in enumerate(self._probe.append_and_score(self._profile, self._packed, before)):
            if before[user] >= tile:
                yield Difference("append", self._expected[user], scores)

    def _launch(
        self, check: str, profile: Profile, places: Sequence[Place], filler: int = NAN_WORD
    ) -> Iterator[Difference]:
        target = self._probe.engine.spec.layout(profile)
        found = self._probe.rank(profile, repack(self._packed, target, places, filler))
        for place, scores in zip(places, found, strict=True):
            yield Difference(check, self._expected[place.user][list(place.candidates)], scores)

    def _fits(self, user: int, profile: Profile) -> bool:
        room = self._probe.engine.spec.input.sequence_capacity(profile.history)
        longest = self._lengths[user].max()
        return profile != self._profile and self._counts[user] <= profile.candidates and longest <= room

    def _some(self, count: int) -> Choice:
        """About half of the candidates, at least one."""
        chosen = np.flatnonzero(self._rng.random(count) < 0.5)
        return chosen if len(chosen) else np.array([self._rng.integers(count)])
