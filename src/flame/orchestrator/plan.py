"""Planning: which candidates of which request go to which launch. Pure functions of shapes and costs, free of torch.

A request is either ranked (each of its slices carries the history), or its history is encoded once and its slices are
scored against the state. Slices of several requests may share one launch of a profile with several users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from flame.engine.spec import Profile
from flame.orchestrator.cover import group
from flame.orchestrator.profiles import Kind, ProfileSet, Tier


class Demand(NamedTuple):
    """What a request needs: `events` in its longest sequence, and candidates (at least one)."""

    events: int
    candidates: int


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


class _Draft(NamedTuple):
    """Launches not yet in order, and their price."""

    launches: list[Launch]
    cost: float


_NO_LIMIT: Mapping[int, int] = {}


def plan(demands: Sequence[Demand], profiles: ProfileSet, states: Mapping[int, int] = _NO_LIMIT) -> Plan:
    """The cheapest launches found for all `demands`; never dearer than `largest_first`.

    Tried are splits that suit a user alone and splits that suit shared launches of each width; each is then packed
    at the least price. Only users of the same profile length share a launch.
    """
    tiers: dict[int, tuple[Tier, list[int]]] = {}
    for index, demand in enumerate(demands):
        tier = profiles.tier(demand.events)
        tiers.setdefault(tier.history, (tier, []))[1].append(index)
    drafts = [
        min(
            (_draft(demands, members, tier, width, states) for width in tier.shares if width == 1 or len(members) > 1),
            key=lambda draft: draft.cost,
        )
        for tier, members in tiers.values()
    ]
    launches = [launch for draft in drafts for launch in draft.launches]
    return Plan(_in_order(launches), sum(draft.cost for draft in drafts))


def largest_first(demands: Sequence[Demand], profiles: ProfileSet, states: Mapping[int, int] = _NO_LIMIT) -> Plan:
    """The paper's rule (FLAME 3.3), the baseline: each request alone, cut into the largest profiles it fills.

    What is left below the smallest profile is padded to it. Encodes nothing, whatever `states` says.
    """
    launches = []
    cost = 0.0
    for index, demand in enumerate(demands):
        tier = profiles.tier(demand.events)
        start = 0
        while start < demand.candidates:
            left = demand.candidates - start
            size = max((size for size in tier.sizes if size <= left), default=tier.sizes[0])
            profile = min(profile for profile in tier.costs if profile.candidates == size)
            launches.append(Launch(profile, "rank", (Slice(index, start, start + min(size, left), 0),)))
            cost += tier.costs[profile].rank
            start += size
    return Plan(tuple(launches), cost)


def _draft(
    demands: Sequence[Demand], members: Sequence[int], tier: Tier, width: int, states: Mapping[int, int]
) -> _Draft:
    """Splits each demand at the prices of launches shared by `width` users, then packs the slices."""
    share = tier.shares[width]
    free = states.get(tier.history, len(members))
    slices: dict[Kind, list[Slice]] = {"encode": [], "rank": [], "score": []}
    for index in members:
        candidates = demands[index].candidates
        encoded = free > len(slices["encode"]) and share.encoding_pays(candidates)
        if encoded:
            slices["encode"].append(Slice(index, 0, 0, 0))
        start = 0
        for length in (share.score if encoded else share.rank).lengths(candidates):
            slices["score" if encoded else "rank"].append(Slice(index, start, start + length, 0))
            start += length
    drafts = [_pack(kind, found, tier) for kind, found in slices.items() if found]
    return _Draft([launch for draft in drafts for launch in draft.launches], sum(draft.cost for draft in drafts))


def _pack(kind: Kind, slices: list[Slice], tier: Tier) -> _Draft:
    """Slices of one kind put into launches at the least price."""
    slices.sort(key=lambda piece: piece.start - piece.stop)
    lengths = [piece.stop - piece.start for piece in slices]
    ends, cost = group(lengths, lambda users, longest: tier.price(kind, users, longest), tier.widest)
    launches = []
    first = 0
    for end in ends:
        profile = tier.profile(kind, end - first, lengths[first])
        placed = tuple(piece._replace(slot=slot) for slot, piece in enumerate(slices[first:end]))
        launches.append(Launch(profile, kind, placed))
        first = end
    return _Draft(launches, cost)


def _in_order(launches: list[Launch]) -> tuple[Launch, ...]:
    """Oldest request first, and each encode right before the first launch that needs it; fills in `after`."""
    encodes = {piece.demand: launch for launch in launches if launch.kind == "encode" for piece in launch.slices}
    working = [launch for launch in launches if launch.kind != "encode"]
    working.sort(key=lambda launch: (min(piece.demand for piece in launch.slices), launch.slices[0].start))
    ordered: list[Launch] = []
    place: dict[Launch, int] = {}
    for launch in working:
        needed = {encodes[piece.demand]: None for piece in launch.slices} if launch.kind == "score" else {}
        for encode in needed:
            if encode not in place:
                place[encode] = len(ordered)
                ordered.append(encode)
        ordered.append(launch._replace(after=tuple(sorted(place[encode] for encode in needed))))
    return tuple(ordered)
