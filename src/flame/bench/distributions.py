"""How many and which: candidate counts, history lengths and item popularity, as text a person can write.

"128"               always 128
"128,256,512,1024"  each equally likely
"lognormal:300,0.8" median 300, sigma 0.8 of the logarithm; rounded, at least 1
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flame.errors import ConfigError
from flame.records import Ids


@dataclass(frozen=True, slots=True)
class Choice:
    """Every value equally likely; one value is a fixed size."""

    values: tuple[int, ...]

    def sample(self, size: int, most: int, generator: np.random.Generator) -> Ids:
        """`size` counts `[size]`; a value over `most` would not be this distribution any more and raises."""
        if max(self.values) > most:
            raise ConfigError(f"{max(self.values)} is more than the limit of {most}; ask for less")
        return generator.choice(np.array(self.values, np.int64), size)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A long tail, as the candidate counts of real traffic have; values are cut at the limit."""

    median: float
    sigma: float

    def sample(self, size: int, most: int, generator: np.random.Generator) -> Ids:
        """`size` counts `[size]` between 1 and `most`."""
        values = generator.lognormal(np.log(self.median), self.sigma, size)
        return np.clip(np.rint(values), 1, most).astype(np.int64)


def parse_counts(text: str, least: int = 1) -> Choice | LogNormal:
    """The distribution that `text` writes down; raises `ConfigError`. No value may lie under `least`."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "lognormal":
            median, sigma = (float(part) for part in rest.split(","))
            if median >= 1 and sigma > 0:
                return LogNormal(median, sigma)
        else:
            values = tuple(int(part) for part in text.split(","))
            if min(values) >= least:
                return Choice(values)
    except ValueError:
        pass
    raise ConfigError(
        f"{text!r} is no distribution of counts: write one count (128), several that are equally likely "
        f"(128,256,512), or lognormal:MEDIAN,SIGMA; counts are at least {least}"
    )


class ZipfItems:
    """Item ids `1..items` whose popularity falls as `rank ** -exponent`; exponent 0 is uniform.

    Ranks are scattered over the ids by a seeded permutation, so that popular rows are not neighbours in memory.
    """

    def __init__(self, items: int, exponent: float, generator: np.random.Generator) -> None:
        if items < 1 or exponent < 0:
            raise ConfigError(f"a zipf law needs items >= 1 and an exponent >= 0, got {items} and {exponent}")
        weights = np.arange(1, items + 1, dtype=np.float64) ** -exponent
        self.items = items
        self._cumulative: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
        self._id_of_rank: Ids = generator.permutation(items).astype(np.int64) + 1

    def sample(self, size: int, generator: np.random.Generator) -> Ids:
        """`size` independent ids `[size]`; popular ones repeat."""
        ranks = np.searchsorted(self._cumulative, generator.random(size), side="right")
        ids: Ids = self._id_of_rank[np.minimum(ranks, self.items - 1)]
        return ids

    def sample_distinct(self, size: int, generator: np.random.Generator) -> Ids:
        """`size` different ids `[size]`, popular ones more likely; raises `ConfigError` when there are too few."""
        if size > self.items:
            raise ConfigError(f"{size} different candidates cannot be drawn from {self.items} items")
        found: Ids = np.empty(0, np.int64)
        for _ in range(8):
            drawn = np.concatenate([found, self.sample(2 * size, generator)])
            _, first = np.unique(drawn, return_index=True)
            found = drawn[np.sort(first)]
            if len(found) >= size:
                return found[:size]
        rest = np.setdiff1d(self._id_of_rank, found)
        return np.concatenate([found, generator.permutation(rest)[: size - len(found)]])
