"""The ways of planning to choose from: by cost, and the two baselines of the paper. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flame.engine.spec import Profile
from flame.orchestrator.plan import NO_LIMIT, Demand, Launch, Plan, Planner, Slice, plan
from flame.orchestrator.profiles import ProfileSet


def largest_first(demands: Sequence[Demand], profiles: ProfileSet, states: Mapping[int, int] = NO_LIMIT) -> Plan:
    """The paper's rule (FLAME 3.3): each request alone, cut into the largest profiles it fills.

    What is left below the smallest profile is padded to it. Encodes nothing, whatever `states` says.
    """
    launches = []
    for index, demand in enumerate(demands):
        tier = profiles.tier(demand.events)
        start = 0
        while start < demand.candidates:
            left = demand.candidates - start
            size = max((size for size in tier.sizes if size <= left), default=tier.sizes[0])
            profile = min(profile for profile in tier.costs if profile.candidates == size)
            launches.append(_rank(profile, index, start, start + min(size, left)))
            start += size
    return _priced(launches, profiles)


def implicit(demands: Sequence[Demand], profiles: ProfileSet, states: Mapping[int, int] = NO_LIMIT) -> Plan:
    """The paper's baseline of implicit shape: every request alone, padded to one profile, the largest there is.

    That is the longest history with the most candidates, for as few users as there are profiles for: its other slots
    would stay empty. A request with more candidates than it holds takes it several times. Encodes nothing.
    """
    longest = profiles.tiers[-1]
    largest = min(profile for profile in longest.costs if profile.candidates == longest.sizes[-1])
    launches: list[Launch] = []
    for index, demand in enumerate(demands):
        profiles.tier(demand.events)
        starts = range(0, demand.candidates, largest.candidates)
        stops = [*starts[1:], demand.candidates]
        launches += [_rank(largest, index, start, stop) for start, stop in zip(starts, stops, strict=True)]
    return _priced(launches, profiles)


POLICIES: Mapping[str, Planner] = {"cost": plan, "largest-first": largest_first, "implicit": implicit}
"""The planner behind each value of the setting `orchestrator.policy`."""


def _rank(profile: Profile, demand: int, start: int, stop: int) -> Launch:
    return Launch(profile, "rank", (Slice(demand, start, stop, 0),))


def _priced(launches: list[Launch], profiles: ProfileSet) -> Plan:
    return Plan(tuple(launches), sum(profiles.costs[launch.profile].rank for launch in launches))
