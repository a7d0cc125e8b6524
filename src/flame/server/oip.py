"""A request and a response of the Open Inference Protocol, free of HTTP and of gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flame.records import Priority, Scores

Values = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Named input tensors for one model.

    An empty `version` means the one that is served, empty `outputs` mean all tasks. `inputs` may be read-only views
    of the bytes that came in. `deadline` is a point of `time.monotonic()` in seconds.
    """

    model: str
    version: str
    inputs: Mapping[str, Values]
    outputs: tuple[str, ...] = ()
    deadline: float | None = None
    request_id: str = ""
    priority: Priority = "interactive"


@dataclass(frozen=True, slots=True)
class InferResponse:
    """Scores `[users, candidates]` of every task asked for; of fewer candidates than asked for where it is truncated.

    `parameters` tell how the answer came about: backend, launches, how many features were stale, missing or unknown,
    and whether it is truncated and to how many candidates, so that a degraded answer never looks like a full one, and
    the microseconds of the stages.
    """

    model: str
    version: str
    request_id: str
    outputs: Mapping[str, Scores]
    parameters: Mapping[str, str | int | bool]
