"""Planning: which candidates of which request go to which launch. Pure functions of shapes and costs, free of torch.

A request is either ranked (each of its slices carries the history), or its history is encoded once and its slices are
scored against the state. Slices of several requests may share one launch of a profile with several users.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from flame.engine.spec import Profile
from flame.orchestrator.profiles import Cut, Cuts, Kind, ProfileSet, Tier


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


class _Lot(NamedTuple):
    """Equal demands: `members` are their places among all demands, and `cuts` how they may be cut."""

    demand: Demand
    members: list[int]
    cuts: list[Cuts]


class _Draft(NamedTuple):
    """How the candidates of some demands are cut, and what launches of these slices cost when packed at best.

    `pieces` names the demands that are cut in the same way, and `encodes` those that are encoded. `ends` holds, for
    each kind there is, where its launches end among its slices, longest first. `gain` is what the encoded histories are
    expected to save later requests.
    """

    pieces: list[tuple[Cut, list[int]]]
    encodes: list[int]
    ends: dict[Kind, list[int]]
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
    for tier, lots in _by_tier(demands, profiles):
        free = states.get(tier.history, len(demands))
        best = min([_draft(lots, ways, tier, free) for ways in _ways(lots)], key=_balance)
        launches += _launches(best, tier)
        cost += best.cost
    return Plan(_in_order(launches), cost)


def _balance(draft: _Draft) -> float:
    return draft.cost - draft.gain


def _by_tier(demands: Sequence[Demand], profiles: ProfileSet) -> Iterable[tuple[Tier, list[_Lot]]]:
    alike: dict[Demand, list[int]] = {}
    for index, demand in enumerate(demands):
        members = alike.get(demand)
        if members is None:
            alike[demand] = [index]
        else:
            members.append(index)
    tiers: dict[int, tuple[Tier, list[_Lot]]] = {}
    for demand, members in alike.items():
        tier = profiles.tier(demand.events)
        found = tiers.setdefault(tier.history, (tier, []))
        found[1].append(_Lot(demand, members, tier.cuts(demand.candidates)))
    return tiers.values()


def _ways(lots: list[_Lot]) -> Iterable[tuple[Cut, ...]]:
    """A cut for each lot, at the prices of launches shared by each number of users; the same ones only once."""
    if len(lots) == 1 and len(lots[0].members) == 1:
        return [(_cut(lots[0].demand, lots[0].cuts[0]),)]
    return dict.fromkeys(zip(*[[_cut(lot.demand, cuts) for cuts in lot.cuts] for lot in lots], strict=True))


def _cut(demand: Demand, cuts: Cuts) -> Cut:
    if demand.encoded:
        return cuts.encoded
    return cuts.score if cuts.share.encoding_pays(demand.candidates, demand.again, demand.fresh) else cuts.rank


def _draft(lots: list[_Lot], ways: tuple[Cut, ...], tier: Tier, free: int) -> _Draft:
    """Cuts each lot its way, but encodes no more histories than there are states `free`, and packs the slices."""
    gain = fresh_events = 0.0
    encodes: list[int] = []
    pieces: list[tuple[Cut, list[int]]] = []
    for (demand, members, cuts), cut in zip(lots, ways, strict=True):
        if cut.kind == "score" and not demand.encoded:
            if (room := free - len(encodes)) < len(members):
                pieces.append((cuts[0].rank, members[room:]))
                members = members[:room]
            encodes += members
            fresh_events += len(members) * demand.fresh
            gain += len(members) * demand.again * tier.shares[1].saving(demand.candidates)
        pieces.append((cut, members))
    ends: dict[Kind, list[int]] = {}
    cost = 0.0
    if encodes:
        ends["encode"], price = tier.grouping["encode"].cut([*[0] * (len(tier.sizes) - 1), len(encodes)])
        cost += price * fresh_events / len(encodes)
    for kind, counts in _counts(pieces, tier).items():
        ends[kind], price = tier.grouping[kind].cut(counts)
        cost += price
    return _Draft(pieces, encodes, ends, cost, gain)


def _counts(pieces: list[tuple[Cut, list[int]]], tier: Tier) -> dict[Kind, list[int]]:
    """How many slices of each class there are, by their kind."""
    counts: dict[Kind, list[int]] = {}
    for cut, members in pieces:
        if members:
            of_kind = counts.get(cut.kind) or counts.setdefault(cut.kind, [0] * len(tier.sizes))
            for place in cut.classes:
                of_kind[place] += len(members)
    return counts


def _launches(draft: _Draft, tier: Tier) -> Iterator[Launch]:
    """The launches of a draft, each kind's longest slices first, and of those of one length the oldest."""
    slices: dict[Kind, dict[int, list[tuple[int, int, int]]]] = {"encode": {}, "rank": {}, "score": {}}
    if draft.encodes:
        slices["encode"][0] = [(index, 0, 0) for index in draft.encodes]
    for cut, members in draft.pieces:
        start = 0
        for length in cut.lengths:
            stop = start + length
            slices[cut.kind].setdefault(length, []).extend([(index, start, stop) for index in members])
            start = stop
    for kind, ends in draft.ends.items():
        found: list[tuple[int, int, int]] = []
        for _, alike in sorted(slices[kind].items(), reverse=True):
            found += sorted(alike)
        first = 0
        for end in ends:
            longest = found[first][2] - found[first][1]
            run = enumerate(found[first:end])
            # There is one of these for every request: `Slice(...)` takes twice as long.
            packed = tuple([_new(Slice, (index, start, stop, slot)) for slot, (index, start, stop) in run])
            yield Launch(tier.profile(kind, end - first, longest), kind, packed)
            first = end


_new = tuple.__new__


def _in_order(launches: list[Launch]) -> tuple[Launch, ...]:
    """Oldest request first, and each encode right before the first launch that needs it; fills in `after`."""
    encodes = [launch for launch in launches if launch.kind == "encode"]
    encoding = {piece.demand: number for number, launch in enumerate(encodes) for piece in launch.slices}
    ordered: list[Launch] = []
    place: dict[int, int] = {}
    for launch in sorted([launch for launch in launches if launch.kind != "encode"], key=_age):
        if launch.kind != "score" or not encoding:
            ordered.append(launch)
            continue
        needed = {encoding[piece.demand] for piece in launch.slices if piece.demand in encoding}
        for number in sorted(needed - place.keys()):
            place[number] = len(ordered)
            ordered.append(encodes[number])
        ordered.append(launch._replace(after=tuple(sorted([place[number] for number in needed]))))
    return tuple(ordered)


def _age(launch: Launch) -> tuple[int, int]:
    """Its oldest request, and where its longest slice starts."""
    return min(launch.slices)[0], launch.slices[0].start
