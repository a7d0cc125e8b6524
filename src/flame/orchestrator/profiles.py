"""Which shapes exist, what each costs, and which of them can hold a request. Free of torch."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from flame.config import OrchestratorConfig
from flame.engine.spec import ModelSpec, Profile, ProfileCost
from flame.errors import ConfigError, HistoryTooLong
from flame.orchestrator.cover import Cover, Grouping

Kind = Literal["rank", "encode", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SMALLEST = 64
_LAUNCH_MS = 0.02
_TOKEN_MS = 0.001
_WORTH = 0.95
"""Encoding apart must be cheaper by more than measurements err: it is one more launch, and a state."""


def default_profiles(spec: ModelSpec, config: OrchestratorConfig) -> tuple[Profile, ...]:
    """The profiles to build for a model: every user count of `config` with every candidate count, longest history.

    Candidate counts are those of `config`, else powers of two from 64 up and the model's limit itself. Raises
    `ConfigError` for a candidate count that no request can have.
    """
    limit = spec.input.max_candidates
    over = [size for size in config.candidates if size > limit]
    if over:
        raise ConfigError(f"orchestrator.candidates {over}: the model takes at most {limit} candidates; leave them out")
    sizes = set(config.candidates) or {*_powers_below(limit), limit}
    history = spec.input.max_history
    return tuple(Profile(users, history, size) for users in sorted(set(config.users)) for size in sorted(sizes))


def _powers_below(limit: int) -> Iterable[int]:
    size = _SMALLEST
    while size < limit:
        yield size
        size *= 2


def estimated_cost(profile: Profile) -> ProfileCost:
    """What a profile is taken to cost when its engine has not measured it.

    0.02 ms for a launch and 1 microsecond for each token in it (events, candidates): only the proportions matter to
    planning, and admission corrects the scale by what launches really take.
    """
    encode = _TOKEN_MS * profile.users * profile.history
    score = _TOKEN_MS * profile.users * profile.candidates
    return ProfileCost(_LAUNCH_MS + encode + score, _LAUNCH_MS + encode, _LAUNCH_MS + score)


def _levelled(costs: Mapping[Profile, ProfileCost]) -> dict[Profile, ProfileCost]:
    """Costs with one price for the same encoding: candidates play no part in it, so differences are noise."""
    same: dict[tuple[int, int], list[float]] = {}
    for profile, cost in costs.items():
        same.setdefault((profile.users, profile.history), []).append(cost.encode)
    return {
        profile: ProfileCost(cost.rank, statistics.median(same[profile.users, profile.history]), cost.score)
        for profile, cost in costs.items()
    }


class Share(NamedTuple):
    """What one user pays when launches are shared by a number of users: price of a slice by its length, in ms."""

    rank: Cover
    encode: float
    score: Cover

    def encoding_pays(self, candidates: int, again: float = 0.0, fresh: float = 1.0) -> bool:
        """Whether encoding the history once and scoring against it beats ranking each slice with its history.

        `again` is the chance that another request finds the state: what that one saves is gained here. `fresh` is the
        share of the history that a state does not hold yet.
        """
        rank, score = self.rank.costs[candidates], self.score.costs[candidates]
        return self.encode * fresh + score - again * max(0.0, rank - score) < _WORTH * rank

    def saving(self, candidates: int) -> float:
        """Milliseconds that a request saves whose history is encoded already."""
        return max(0.0, self.rank.costs[candidates] - self.score.costs[candidates])

    def cost(self, candidates: int, fresh: float = 1.0) -> float:
        """Milliseconds of one request, done the better way."""
        if self.encoding_pays(candidates, fresh=fresh):
            return self.encode * fresh + self.score.costs[candidates]
        return self.rank.costs[candidates]


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """How candidates are cut into slices of one `kind`. Equal ones of a tier are the same object.

    `lengths` are those of the slices, longest first, and `classes` their places among the sizes of the tier, the
    largest of which is the first.
    """

    kind: Kind
    lengths: tuple[int, ...]
    classes: tuple[int, ...]


class Cuts(NamedTuple):
    """How some number of candidates is cut where launches are shared by one number of users, and what that user pays.

    Of a history that is encoded already, `encoded` is the cheaper way to go on.
    """

    rank: Cut
    score: Cut
    encoded: Cut
    share: Share


class Tier:
    """All profiles of one history length, and the prices of launches among them.

    Immutable after it is made, but for memos that any thread may fill, with an entry for a candidate count at most.

    By candidates: `alone` is what a request costs that shares its launches with nobody, and `worth_waiting` whether one
    should wait until another has encoded the history of both. Prices of wide launches would say so more often, but
    whoever waits is missing in the launches that are to be wide.
    """

    def __init__(self, history: int, events: int, costs: Mapping[Profile, ProfileCost], limit: int) -> None:
        self.history = history
        self.events = events
        self.costs = costs
        self.widest = max(profile.users for profile in costs)
        self.sizes = tuple(sorted({profile.candidates for profile in costs}))
        self.shares = {users: self._share(users, limit) for users in sorted({1, *(p.users for p in costs)})}
        alone = self.shares[1]
        self.alone = [alone.cost(candidates) for candidates in range(limit + 1)]
        self.worth_waiting = [alone.encoding_pays(candidates, again=1.0) for candidates in range(limit + 1)]
        self._launches: dict[Kind, list[list[tuple[float, Profile | None]]]] = {
            kind: [[self._cheapest(kind, users, size) for size in self.sizes] for users in range(self.widest + 1)]
            for kind in KINDS
        }
        self.grouping = {kind: self._grouping(kind) for kind in self._launches}
        self._cuts: dict[int, list[Cuts]] = {}
        self._same: dict[tuple[Kind, tuple[int, ...]], Cut] = {}

    def cuts(self, candidates: int) -> list[Cuts]:
        """How that many candidates are cut, for each number of users of `shares`."""
        found = self._cuts.get(candidates)
        if found is None:
            found = self._cuts[candidates] = [self._cut(share, candidates) for share in self.shares.values()]
        return found

    def fewer(self, candidates: int) -> Iterator[int]:
        """Counts below `candidates` that fill launches without padding, most first."""
        largest = self.sizes[-1]
        yield from range((candidates - 1) // largest * largest, largest, -largest)
        yield from (size for size in reversed(self.sizes) if size < candidates)

    def profile(self, kind: Kind, users: int, candidates: int) -> Profile:
        """The profile of the cheapest launch with that many slots of that many candidates."""
        found = self._launches[kind][users][bisect_left(self.sizes, candidates)][1]
        assert found is not None, f"no {kind} launch for {users} users with {candidates} candidates"
        return found

    def _grouping(self, kind: Kind) -> Grouping:
        widths = sorted({profile.users for profile in self.costs}, reverse=True)
        places = range(len(self.sizes) - 1, -1, -1)
        return Grouping(widths, [[self._launches[kind][users][place][0] for users in widths] for place in places])

    def _cut(self, share: Share, candidates: int) -> Cuts:
        rank = self._one("rank", share.rank.lengths(candidates))
        score = self._one("score", share.score.lengths(candidates))
        return Cuts(rank, score, score if share.saving(candidates) else rank, share)

    def _one(self, kind: Kind, lengths: tuple[int, ...]) -> Cut:
        largest = len(self.sizes) - 1
        classes = tuple(largest - bisect_left(self.sizes, length) for length in lengths)
        return self._same.setdefault((kind, lengths), Cut(kind, lengths, classes))

    def _cheapest(self, kind: Kind, users: int, candidates: int) -> tuple[float, Profile | None]:
        fitting = [p for p in self.costs if p.users >= users and p.candidates >= candidates]
        best = min(fitting, key=lambda p: (getattr(self.costs[p], kind), p), default=None)
        return (getattr(self.costs[best], kind), best) if best else (math.inf, None)

    def _share(self, users: int, limit: int) -> Share:
        """Prices per user of launches with exactly `users` slots; for 1, of any launch that this user has alone."""
        chosen = [p for p in self.costs if users in (1, p.users)]
        rank: dict[int, float] = {}
        score: dict[int, float] = {}
        for profile in chosen:
            cost, size = self.costs[profile], profile.candidates
            rank[size] = min(rank.get(size, math.inf), cost.rank / users)
            score[size] = min(score.get(size, math.inf), cost.score / users)
        encode = min(self.costs[profile].encode for profile in chosen) / users
        return Share(Cover(rank, limit), encode, Cover(score, limit))


class ProfileSet:
    """The profiles of an engine with their costs: measured ones, or `estimated_cost` where there is none.

    Immutable, shared by all threads.
    """

    def __init__(self, spec: ModelSpec, profiles: Iterable[Profile], costs: Mapping[Profile, ProfileCost]) -> None:
        self.profiles = tuple(sorted(set(profiles)))
        self.costs = _levelled({profile: costs.get(profile) or estimated_cost(profile) for profile in self.profiles})
        limit = spec.input.max_candidates
        self.tiers = tuple(
            Tier(
                history,
                spec.input.sequence_capacity(history),
                {profile: cost for profile, cost in self.costs.items() if profile.history == history},
                limit,
            )
            for history in sorted({profile.history for profile in self.profiles})
        )
        self.widest = max(profile.users for profile in self.profiles)
        self._by_events: list[Tier] = []
        for tier in self.tiers:
            self._by_events += [tier] * (tier.events + 1 - len(self._by_events))

    def tier(self, events: int) -> Tier:
        """The shortest profiles that hold `events` events in each sequence; raises `HistoryTooLong` without any."""
        try:
            return self._by_events[events]
        except IndexError:
            raise HistoryTooLong(
                f"a sequence of {events} events does not fit the longest profile, which holds {self.tiers[-1].events}"
            ) from None

    def price(self, profile: Profile, kind: Kind) -> float:
        """Milliseconds of one launch."""
        price: float = getattr(self.costs[profile], kind)
        return price

    def predict(self, events: int, candidates: int, *, encoded: bool = False, fresh: float = 1.0) -> float:
        """Milliseconds of device time for one request that shares its launches with nobody.

        `encoded`: its history is encoded already. `fresh`: this share of it is not.
        """
        tier = self.tier(events)
        if fresh == 1.0 and not encoded:
            return tier.alone[candidates]
        share = tier.shares[1]
        return share.score.costs[candidates] if encoded else share.cost(candidates, fresh)
