"""What travels between the parts of FLAME: frozen, typed, without logic.

Arrays are owned by the record that holds them and must not be written after it is made; the one exception,
`Features.words`, says so. What is made for every request is a `msgspec.Struct`, the cheapest record there is in Python
(`msgspec.structs.replace` makes one from another); the others are dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from flame.layout import PackedLayout, Words

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]

Priority = Literal["interactive", "batch"]
"""Who is served first: requests that somebody waits for, then those that only have to be done some time."""


class History(Struct, frozen=True):
    """A user's events, oldest first: three int64 columns of one length `[events]`.

    `timestamps` are seconds since any fixed point and never decrease; only differences are used.
    """

    items: Ids
    actions: Ids
    timestamps: Ids


class RankRequest(Struct, frozen=True):
    """One user and the candidates to score.

    `history` and `context` override the feature store; None and an absent name mean "look it up" and "use the
    default". `deadline` is a point of `time.monotonic()` in seconds. `tasks` empty means all of the model's.
    """

    user: int
    candidates: Ids
    history: History | None = None
    scenario: int = 0
    context: Mapping[str, NDArray[np.generic] | float | int] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    deadline: float | None = None
    request_id: str = ""
    priority: Priority = "interactive"


@dataclass(frozen=True, slots=True)
class FeatureCounts:
    """How many features of one request were not what a full answer would use.

    `stale` rows were served past their time to live, `missing` rows were not there in time and were replaced by
    the default row, `unknown` ids are not in the store or not in the model's vocabulary. One row (a candidate, or an
    event of one sequence) is counted once, as the worst of these. `unknown_user` says that the store was asked for
    the user and does not know them.
    """

    stale: int = 0
    missing: int = 0
    unknown: int = 0
    unknown_user: bool = False

    @property
    def degraded(self) -> bool:
        return bool(self.stale or self.missing or self.unknown or self.unknown_user)


class Features(Struct, frozen=True):
    """Everything a launch needs of one request, written once.

    `words` is the packed buffer that `layout` describes (one user, sequences as long as its own history,
    candidates as many as it asked for). It belongs to `features.staging`: whoever finishes the request calls
    `release` exactly once, and nobody reads it afterwards; never where it ends in an error with `features_lost`.
    `fingerprint` identifies all that the history state depends on (events, their features, scenario), so equal
    fingerprints mean equal states. `prefixes` identify so its oldest tile of events, its oldest two tiles, and so on,
    whatever follows them; there are none where the engine cannot append to a state. Where `words` are `pinned`, GPUs
    read them where they lie.
    """

    words: Words
    layout: PackedLayout
    lengths: tuple[int, ...]
    fingerprint: bytes
    counts: FeatureCounts
    prefixes: tuple[bytes, ...] = ()
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Microseconds that one request spent in each stage, in the order of the path."""

    admission: float
    features: float
    queue: float
    compute: float
    respond: float
    total: float


@dataclass(frozen=True, slots=True)
class RankResponse:
    """Scores `[candidates, tasks]` in the order of the request, and how they came about.

    A `truncated` answer has the scores of the first candidates only: more could not be scored before the deadline.
    """

    scores: Scores
    tasks: tuple[str, ...]
    model: str
    version: str
    backend: str
    counts: FeatureCounts
    times: StageTimes
    launches: int
    request_id: str = ""
    history_reused: bool = False
    """Whether the history was encoded for another request: then no launch of this one encoded it."""
    truncated: bool = False
