"""The contract of a feature store: item rows in batches, one user at a time, both before a deadline."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flame.features.kernels.codes import ABSENT, FOUND, UNANSWERED
from flame.layout import Words
from flame.records import History, Ids

__all__ = ["ABSENT", "FOUND", "UNANSWERED", "Answers", "FeatureStore", "UserRecord"]

Answers = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class UserRecord:
    """A user's feature row `[user words]` and newest events, oldest first. Both are read-only to the caller.

    The history must pass `store.history.check_types` and `check_values` with the schema's actions, and the row hold
    what its fields allow: a store checks what enters it, and compiled code takes it as it is.
    """

    row: Words
    history: History


class FeatureStore(abc.ABC):
    """Where item rows, user rows and histories come from.

    Every method may be called from any number of threads at once, and blocks the calling one. `StoreUnavailable` is
    the only `FlameError` a store raises, with the cause attached.
    """

    @abc.abstractmethod
    def items(self, ids: Ids, rows: Words, answers: Answers, deadline: float | None) -> None:
        """Writes the rows of `ids` `[n]`, which are unique, into `rows` `[n, item words]`, both owned by the caller.

        `answers` `[n]` comes in full of UNANSWERED and leaves with FOUND (the row is written), ABSENT (the store has
        no such item) or UNANSWERED (not in time) for each. Returns by `deadline`, a point of `time.monotonic()`,
        with what it has: being late is not an error. Raises `StoreUnavailable` if nothing can be read; answers
        written before that hold.
        """

    @abc.abstractmethod
    def user(self, user: int, events: int, deadline: float | None) -> UserRecord | None:
        """What is known of a user with at most the newest `events` events, or None for a user not in the store.

        Raises `StoreUnavailable` if the store cannot be read or does not answer by `deadline`.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what the store holds; later calls raise `StoreUnavailable`. Closing twice does nothing."""
