"""Seeded request streams: the same seed gives the same users, histories and candidates on every machine.

A workload is a fixed number of distinct requests held as flat arrays; a benchmark that needs more of them begins
again at the first. Histories belong to users, so a user who comes back comes with the same history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flame.bench.distributions import Choice, LogNormal, ZipfItems
from flame.errors import ConfigError
from flame.records import History, Ids, RankRequest

NEWEST = 1_700_000_000
"""Seconds of the newest event of every history: any fixed point will do, ages count from it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A traffic shape of the paper (1.5, 1.6): history events and the candidate counts that occur."""

    history: int
    candidates: Choice


SCENARIOS = {
    "base": Scenario(512, Choice((128,))),
    "long": Scenario(1024, Choice((512,))),
    "mixed": Scenario(1024, Choice((128, 256, 512, 1024))),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model that is asked can take; ids of items run over `1..items`."""

    max_history: int
    max_candidates: int
    actions: int
    scenarios: int
    items: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to draw a workload. `history` None sends user ids only, and the server looks their histories up."""

    requests: int
    candidates: Choice | LogNormal
    history: Choice | LogNormal | None
    users: int = 1000
    zipf: float = 1.05
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests as arrays.

    Request `i` is user `users[i]` in scenario `scenarios[i]` with the candidates
    `items[starts[i]:starts[i + 1]]`. `histories[u]` is the history of user `u + 1`; empty: looked up by the server.
    """

    users: Ids
    scenarios: Ids
    starts: Ids
    items: Ids
    histories: tuple[History, ...]

    def __len__(self) -> int:
        return len(self.users)

    def request(self, index: int) -> RankRequest:
        """Request `index`, counted round: after the last comes the first."""
        index %= len(self)
        user = int(self.users[index])
        return RankRequest(
            user=user,
            candidates=self.items[self.starts[index] : self.starts[index + 1]],
            history=self.histories[user - 1] if self.histories else None,
            scenario=int(self.scenarios[index]),
        )

    def __iter__(self) -> Iterator[RankRequest]:
        return (self.request(index) for index in range(len(self)))


def generate(recipe: Recipe, limits: Limits) -> Workload:
    """Draws a workload; raises `ConfigError` where the recipe asks for more than the limits allow.

    Each part draws from a generator of its own, so that changing the history, say, leaves the candidates as they were.
    """
    if recipe.requests < 1 or recipe.users < 1:
        raise ConfigError(f"a workload needs requests and users, got {recipe.requests} and {recipe.users}")
    seeds = np.random.SeedSequence(recipe.seed).spawn(5)
    of_items, of_users, of_scenarios, of_counts, of_candidates = (np.random.default_rng(seed) for seed in seeds)
    popularity = ZipfItems(limits.items, recipe.zipf, of_items)
    counts = recipe.candidates.sample(recipe.requests, limits.max_candidates, of_counts)
    drawn = [popularity.sample_distinct(int(count), of_candidates) for count in counts]
    return Workload(
        users=of_users.integers(1, recipe.users + 1, recipe.requests),
        scenarios=of_scenarios.integers(0, limits.scenarios, recipe.requests),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        items=np.concatenate(drawn),
        histories=_histories(recipe, limits, popularity),
    )


def _histories(recipe: Recipe, limits: Limits, popularity: ZipfItems) -> tuple[History, ...]:
    """One history per user, oldest event first; gaps between events are exponential with a mean of an hour."""
    if recipe.history is None:
        return ()
    generator = np.random.default_rng([recipe.seed, 1])
    lengths = recipe.history.sample(recipe.users, limits.max_history, generator)
    return tuple(_history(int(length), limits.actions, popularity, generator) for length in lengths)


def _history(events: int, actions: int, popularity: ZipfItems, generator: np.random.Generator) -> History:
    gaps = generator.exponential(3600.0, events).astype(np.int64)
    return History(
        items=popularity.sample(events, generator),
        actions=generator.integers(0, actions, events),
        timestamps=NEWEST - gaps.sum() + np.cumsum(gaps),
    )
