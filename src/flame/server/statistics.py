"""The statistics extension of the protocol: what the model has done since the server started.

The ranker's sums under the protocol's names: `queue` is admission and the wait for an executor, `compute_input` the
features, `compute_infer` the model, `compute_output` the response. A request with several users succeeds once for each
and fails once.
"""

from __future__ import annotations

from typing import Any

from flame.engine.spec import ModelSpec
from flame.statistics import Statistics


class Failures:
    """Requests that could be read and ended in an error, before or behind the ranker's door.

    Those that could not be read are in the metrics only. Belongs to the event loop's thread.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Counts one that took `seconds`."""
        self.count += 1
        self.seconds += seconds


def model_statistics(spec: ModelSpec, sums: Statistics, failures: Failures) -> dict[str, Any]:
    """One entry of the protocol's `model_stats`."""
    count, times = sums.succeeded, sums.times
    return {
        "name": spec.name,
        "version": spec.version,
        "last_inference": int(sums.last_answer * 1e3),
        "inference_count": count,
        "execution_count": sums.launches,
        "inference_stats": {
            "success": _duration(count, times.total),
            "fail": _duration(failures.count, failures.seconds * 1e6),
            "queue": _duration(count, times.admission + times.queue),
            "compute_input": _duration(count, times.features),
            "compute_infer": _duration(count, times.compute),
            "compute_output": _duration(count, times.respond),
        },
        "batch_stats": [],
    }


def _duration(count: int, microseconds: float) -> dict[str, int]:
    return {"count": count, "ns": max(0, int(microseconds * 1e3))}
