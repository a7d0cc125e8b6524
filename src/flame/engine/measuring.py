"""What an engine's profiles cost and which way of running them is fastest: measured once, then in the artifact."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from flame.engine import artifact as artifacts
from flame.engine.backends.base import Engine
from flame.engine.costs import measure_cost
from flame.engine.spec import Profile, ProfileCost
from flame.errors import ExecutionError

_log = logging.getLogger(__name__)

_WORTH = 0.97
"""Another way is taken where it needs less than this share of the time: differences below are noise."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many steps are done."""


class Place(NamedTuple):
    """Where what is measured is kept, and for how many threads of a launch it is true."""

    folder: Path
    identity: artifacts.Identity
    threads: int


def measure(engine: Engine, artifact: artifacts.Artifact, place: Place, report: Progress) -> None:
    """Sets the engine's costs and the ways of its launches: known ones from the artifact, the others added to it.

    The largest profile is measured first, so that memory which later ones use again is taken once.
    """
    known = artifact.costs_of(engine.profiles, place.threads)
    missing = [profile for profile in engine.profiles if profile not in known]
    ways: dict[Profile, Mapping[str, str]] = {}
    for profile in engine.profiles:
        _take(engine, profile, artifact.ways.get(str(profile), {}))
    for done, profile in enumerate(sorted(missing, key=lambda one: one.rows, reverse=True)):
        report("measuring profiles", done, len(missing))
        if str(profile) not in artifact.ways and engine.ways(profile):
            ways[profile] = fastest_ways(engine, profile)
            _take(engine, profile, ways[profile])
        known[profile] = measure_cost(engine, profile)
    if missing:
        report("measuring profiles", len(missing), len(missing))
        _keep(place, {profile: known[profile] for profile in missing}, ways)
    engine.costs = {profile: known[profile] for profile in engine.profiles}


def fastest_ways(engine: Engine, profile: Profile) -> dict[str, str]:
    """The fastest of the engine's ways for every kind of launch that has a choice.

    A way that is hardly faster than the one taken unasked is not worth it, and one that fails is told and left out.
    """
    ways = engine.ways(profile)
    times: dict[str, dict[str, float]] = {kind: {} for kind in ways}
    for turn in range(max(map(len, ways.values()), default=0)):
        taken = {kind: names[turn] for kind, names in ways.items() if turn < len(names)}
        _take(engine, profile, taken)
        try:
            cost = measure_cost(engine, profile)
        except ExecutionError as error:
            if not turn:
                raise
            _log.warning("profile %s does not run by %s: %s", profile, taken, error)
            continue
        for kind, name in taken.items():
            times[kind][name] = getattr(cost, kind)
    return {kind: _fastest(list(found.items())) for kind, found in times.items()}


def _fastest(times: list[tuple[str, float]]) -> str:
    guess, usual = times[0]
    name, least = min(times, key=lambda time: time[1])
    return name if least < _WORTH * usual else guess


def _take(engine: Engine, profile: Profile, ways: Mapping[str, str]) -> None:
    for kind, way in ways.items():
        engine.take(profile, kind, way)


def _keep(place: Place, costs: Mapping[Profile, ProfileCost], ways: artifacts.Ways) -> None:
    """Adds to the artifact; where it cannot be written, all is measured again next time."""
    try:
        artifacts.add_measured(place.folder, place.identity, place.threads, costs, ways)
    except OSError as error:
        _log.warning("costs cannot be kept in the artifact %s: %s", place.folder, error)
