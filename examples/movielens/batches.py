"""Training examples: one user at one point of time, with what followed and what did not (single user, many items).

An example's history ends at a random cut; its candidates are interactions that followed and movies the user never
rated in the training period. Its item rows have not counted the user's own ratings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from examples.movielens.packing import Example
from flame.examples.movielens import columns, rows, split
from flame.examples.movielens.dataset import Dataset, Events, Ints
from flame.examples.movielens.schema import LIKED, MOVIES
from flame.records import History
from flame.schema import InputSchema


@dataclass(frozen=True, slots=True)
class Sampling:
    """How examples are drawn; the two shares make the model robust to gaps and to movies it does not know."""

    positives: int = 32
    negatives: int = 96
    forgotten_events: float = 0.1
    unknown_items: float = 0.02


class Sampler:
    """Draws examples from the events before `until`; the same seed draws the same examples."""

    def __init__(self, data: Dataset, schema: InputSchema, until: int, sampling: Sampling, seed: int) -> None:
        self.schema, self.sampling = schema, sampling
        self.random = np.random.default_rng(seed)
        events = split.training(data.events, until)
        statistics = columns.Statistics.of(events, until)
        self.own = {user: own for user, own in split.by_user(events).items() if _cuttable(own)}
        self.rows = {user: rows.of_items(data, schema, statistics.minus(own)) for user, own in self.own.items()}
        self.user_rows = rows.of_users(data, schema)

    def epoch(self, batch: int) -> Iterator[list[Example]]:
        """Every user once, in random order, `batch` at a time."""
        users = self.random.permutation(np.array(list(self.own)))
        for start in range(0, len(users), batch):
            yield [self._draw(int(user)) for user in users[start : start + batch]]

    def _draw(self, user: int) -> Example:
        own = self.own[user]
        cut = len(own)
        while cut == len(own):
            cut = split.next_cut(own.timestamps, int(self.random.integers(split.MIN_HISTORY, len(own))))
        later = own.take(slice(cut, None))
        chosen = later.take(self.random.permutation(len(later))[: self.sampling.positives])
        candidates = np.concatenate([chosen.items, self._unseen(own)])
        labels = np.zeros((len(candidates), 2), np.float32)
        labels[: len(chosen)] = np.stack([np.ones(len(chosen)), chosen.ratings >= LIKED], 1)
        history = self._thinned(split.history(own, cut))
        return Example(history, candidates, labels, self.rows[user], self.user_rows[user], self._unknown())

    def _unknown(self) -> Ints:
        """Movies that this example pretends not to know, so that row 0 of the item table learns what to say of one."""
        return 1 + np.flatnonzero(self.random.random(MOVIES) < self.sampling.unknown_items)

    def _unseen(self, own: Events) -> Ints:
        """Movies the user never rated in the training period, each equally likely."""
        unseen = np.setdiff1d(np.arange(1, MOVIES + 1), own.items)
        return self.random.choice(unseen, self.sampling.negatives, replace=False)

    def _thinned(self, history: History) -> History:
        """The history without a random share of its events; the newest always stays."""
        keep = self.random.random(len(history.items)) >= self.sampling.forgotten_events
        keep[-1] = True
        return History(history.items[keep], history.actions[keep], history.timestamps[keep])


def _cuttable(own: Events) -> bool:
    """Whether some cut leaves enough history before it and anything after it."""
    return len(own) > split.MIN_HISTORY and split.next_cut(own.timestamps, split.MIN_HISTORY) < len(own)
