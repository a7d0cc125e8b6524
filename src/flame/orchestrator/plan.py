"""Planning: which candidates of which request go to which launch. Pure functions of shapes and costs, free of torch.

A request is either ranked (each of its slices carries the history), or its history is encoded once and its slices are
scored against the state. Slices of several requests may share one launch of a profile with several users.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol

from flame.engine.spec import Profile
from flame.orchestrator.cover import group
from flame.orchestrator.profiles import Kind, ProfileSet, Tier


class Demand(NamedTuple):
    """What a request needs: `events` in its longest sequence, and candidates (at least one).

    `encoded`: its history is, or will be when its launches start, in a state that it may be scored against. `again`
    is the chance that another request will find the state, if the history is encoded for this one, and `fresh` the
    share of its events that this takes: a state holds the others.
    """

    events: int
    candidates: int
    encoded: bool = False
    again: float = 0.0
    fresh: float = 1.0


class Slice(NamedTuple):
    """Candidates `[start, stop)` of one demand, in one slot of a launch; an encode launch takes no candidates."""

    demand: int
    start: int
    stop: int
    slot: int


class Launch(NamedTuple):
    """One run of a profile. `after` are the places in the plan of the launches that must have ended before it."""

    profile: Profile
    kind: Kind
    slices: tuple[Slice, ...]
    after: tuple[int, ...] = ()


class Plan(NamedTuple):
    """Launches in the order in which they should start, and their device time by the costs they were planned with."""

    launches: tuple[Launch, ...]
    predicted_ms: float


class Planner(Protocol):
    """A policy. `states` says how many histories of each length can be encoded now; an absent length means any number.

    Every demand passed in is served by the plan that comes out, so requests start in the order in which they came.
    """

    def __call__(self, demands: Sequence[Demand], profiles: ProfileSet, states: Mapping[int, int] = ...) -> Plan: ...


NO_LIMIT: Mapping[int, int] = {}


class _Draft(NamedTuple):
    """How the candidates of some demands are cut, and what launches of these slices cost when packed at best.

    `lengths` are those of the slices of each demand, in the order of the demands, and `kinds` says whether they are
    ranked or scored; `encodes` names the demands that are encoded. `cuts` holds, for each kind there is, where its
    launches end among its slices. `gain` is what the encoded histories are expected to save later requests.
    """

    encodes: list[int]
    kinds: list[Kind]
    lengths: list[tuple[int, ...]]
    cuts: dict[Kind, list[int]]
    cost: float
    gain: float


def plan(demands: Sequence[Demand], profiles: ProfileSet, states: Mapping[int, int] = NO_LIMIT) -> Plan:
    """The cheapest launches found for all `demands`, less what the states they leave behind are expected to save.

    Never dearer than `policies.largest_first` where no history is expected `again`. Tried are splits that suit a user
    alone and splits that suit shared launches of each width; each is then packed at the least price. Only users of the
    same profile length share a launch.
    """
    launches: list[Launch] = []
    cost = 0.0
    for tier, members in _by_tier(demands, profiles):
        asked = [demands[index] for index in members]
        free = states.get(tier.history, len(members))
        widths = [width for width in tier.shares if width == 1 or len(members) > 1]
        best = min((_draft(asked, tier, width, free) for width in widths), key=_balance)
        launches += _launches(best, members, tier)
        cost += best.cost
    return Plan(_in_order(launches), cost)


def _balance(draft: _Draft) -> float:
    return draft.cost - draft.gain


def _by_tier(demands: Sequence[Demand], profiles: ProfileSet) -> Iterable[tuple[Tier, list[int]]]:
    tiers: dict[int, tuple[Tier, list[int]]] = {}
    for index, demand in enumerate(demands):
        tier = profiles.tier(demand.events)
        found = tiers.get(tier.history)
        if found is None:
            tiers[tier.history] = tier, [index]
        else:
            found[1].append(index)
    return tiers.values()


class _Choice(NamedTuple):
    """What would be done for a demand: kind and lengths of its slices, with its history encoded first where that
    `encodes` and a state is free, and otherwise."""

    encodes: bool
    gain: float
    encoded: tuple[Kind, tuple[int, ...]]
    plain: tuple[Kind, tuple[int, ...]]


def _choice(demand: Demand, tier: Tier, width: int) -> _Choice:
    """At the prices of launches shared by `width` users."""
    share, candidates = tier.shares[width], demand.candidates
    ranked: tuple[Kind, tuple[int, ...]] = "rank", share.rank.lengths(candidates)
    scored: tuple[Kind, tuple[int, ...]] = "score", share.score.lengths(candidates)
    if demand.encoded:
        return _Choice(False, 0.0, scored, scored if share.saving(candidates) else ranked)
    encodes = share.encoding_pays(candidates, demand.again, demand.fresh)
    return _Choice(encodes, demand.again * tier.shares[1].saving(candidates), scored, ranked)


def _draft(demands: Sequence[Demand], tier: Tier, width: int, free: int) -> _Draft:
    """Splits each demand at the prices of launches shared by `width` users, then packs the slices."""
    gain = fresh_events = 0.0
    encodes: list[int] = []
    kinds: list[Kind] = []
    lengths: list[tuple[int, ...]] = []
    slices: dict[Kind, list[int]] = {"encode": [], "rank": [], "score": []}
    known: dict[Demand, _Choice] = {}
    for place, demand in enumerate(demands):
        choice = known.get(demand) or known.setdefault(demand, _choice(demand, tier, width))
        if choice.encodes and len(encodes) < free:
            kind, pieces = choice.encoded
            encodes.append(place)
            fresh_events += demand.fresh
            gain += choice.gain
        else:
            kind, pieces = choice.plain
        slices[kind].extend(pieces)
        kinds.append(kind)
        lengths.append(pieces)
    slices["encode"] = [0] * len(encodes)
    cuts: dict[Kind, list[int]] = {}
    cost = 0.0
    for kind, found in slices.items():
        if found:
            found.sort(reverse=True)
            cuts[kind], price = group([*map(tier.offers(kind).__getitem__, found)])
            cost += price * fresh_events / len(encodes) if kind == "encode" else price
    return _Draft(encodes, kinds, lengths, cuts, cost, gain)


def _launches(draft: _Draft, members: Sequence[int], tier: Tier) -> Iterator[Launch]:
    """The launches of a draft, each kind's longest slices first."""
    encodes = [(0, members[place], 0) for place in draft.encodes]
    slices: dict[Kind, list[tuple[int, int, int]]] = {"encode": encodes, "rank": [], "score": []}
    for index, kind, lengths in zip(members, draft.kinds, draft.lengths, strict=True):
        found = slices[kind]
        start = 0
        for length in lengths:
            found.append((length, index, start))
            start += length
    for kind, ends in draft.cuts.items():
        found = sorted(slices[kind], key=_length, reverse=True)
        first = 0
        for end in ends:
            profile = tier.profile(kind, end - first, found[first][0])
            run = enumerate(found[first:end])
            yield Launch(
                profile,
                kind,
                tuple([Slice(index, start, start + length, slot) for slot, (length, index, start) in run]),
            )
            first = end


_length = itemgetter(0)


def _in_order(launches: list[Launch]) -> tuple[Launch, ...]:
    """Oldest request first, and each encode right before the first launch that needs it; fills in `after`."""
    encodes = [launch for launch in launches if launch.kind == "encode"]
    encoding = {piece.demand: number for number, launch in enumerate(encodes) for piece in launch.slices}
    working = [(min(launch.slices), launch.slices[0].start, launch) for launch in launches if launch.kind != "encode"]
    ordered: list[Launch] = []
    place: dict[int, int] = {}
    for _, _, launch in sorted(working, key=_age):
        if launch.kind != "score":
            ordered.append(launch)
            continue
        needed = {encoding[piece.demand] for piece in launch.slices if piece.demand in encoding}
        for number in sorted(needed - place.keys()):
            place[number] = len(ordered)
            ordered.append(encodes[number])
        ordered.append(launch._replace(after=tuple(sorted([place[number] for number in needed]))))
    return tuple(ordered)


def _age(entry: tuple[Slice, int, Launch]) -> tuple[int, int]:
    return entry[0].demand, entry[1]
