"""Requests that are ready to be submitted: packed before the run, so that making them is not part of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flame.bench.distributions import Choice, LogNormal
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile
from flame.features.staging import StagingPool
from flame.layout import PackedLayout, Words
from flame.records import FeatureCounts, Features, History, Ids, RankRequest

_COUNTS = FeatureCounts()


class _Packed(NamedTuple):
    words: Words
    layout: PackedLayout
    candidates: Ids


class Traffic:
    """`distinct` requests of full histories of `history` events, used in turn by any number of threads.

    Whose history a submission has is its sender's to say, by the number of the user: no two users share a state, and
    one user's requests do. The events themselves are those of the packed request, whoever the user: nobody looks at
    the scores. `pinned` once they lie in memory that GPUs read.
    """

    def __init__(self, spec: ModelSpec, history: int, candidates: Choice | LogNormal, distinct: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.history = history
        events = np.zeros(history, np.int64)
        self._history = History(events, events, events)
        """What admission looks at: only its length."""
        self.lengths = tuple(sequence.capacity(history) for sequence in spec.input.sequences)
        self.counts: list[int] = candidates.sample(distinct, spec.input.max_candidates, generator).tolist()
        self._pool = [self._pack(spec, count, generator) for count in self.counts]
        self._staging: StagingPool | None = None
        self.pinned = False

    @property
    def mean(self) -> float:
        """Candidates of a request on average."""
        return sum(self.counts) / len(self.counts)

    def request(self, index: int, user: int, deadline: float | None = None) -> RankRequest:
        """Request `index`, counted round, of that user, as admission sees it. `deadline` is of `time.monotonic()`."""
        return RankRequest(user, self._pool[index % len(self._pool)].candidates, self._history, deadline=deadline)

    def features(self, index: int, user: int) -> Features:
        """The same request as the queue takes it."""
        words, layout, _ = self._pool[index % len(self._pool)]
        return Features(words, layout, self.lengths, user.to_bytes(16, "little"), _COUNTS, (), self.pinned)

    def pin(self) -> None:
        """Moves the requests into memory that GPUs read, where those of a `Ranker` with a GPU are. Once."""
        self._staging = StagingPool(pinned=True)
        moved = [self._staging.take(len(packed.words)) for packed in self._pool]
        for words, packed in zip(moved, self._pool, strict=True):
            words[:] = packed.words
        self._pool = [packed._replace(words=words) for words, packed in zip(moved, self._pool, strict=True)]
        self.pinned = self._staging.pinned

    def close(self) -> None:
        """Gives that memory back; no request may be on its way."""
        if self._staging is not None:
            for packed in self._pool:
                self._staging.release(packed.words)
            self._staging.close()

    def _pack(self, spec: ModelSpec, count: int, generator: np.random.Generator) -> _Packed:
        layout = spec.layout(Profile(1, self.history, count))
        words = random_words(spec, layout, [self.lengths], [count], generator)
        return _Packed(words, layout, np.arange(1, count + 1, dtype=np.int64))
