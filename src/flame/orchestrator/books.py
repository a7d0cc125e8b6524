"""What is written down of launches and requests: spans of the timeline, and metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cache

from flame.engine.spec import Profile
from flame.errors import FlameError, RefusedError
from flame.metrics import Metrics
from flame.orchestrator.job import Job
from flame.orchestrator.post import Post
from flame.orchestrator.profiles import KINDS
from flame.orchestrator.ticket import Ticket
from flame.orchestrator.timeline import Timeline

_log = logging.getLogger(__name__)


class Books:
    """Writes into `timeline` and `metrics`, from any thread. The counter of a label is found once: to find it takes
    longer than to count."""

    def __init__(
        self, timeline: Timeline, metrics: Metrics, devices: Sequence[str], profiles: Iterable[Profile]
    ) -> None:
        self._timeline = timeline
        self._padding = metrics.padding
        self._refused = cache(lambda kind, priority: metrics.refused.labels("queue", kind, priority))
        self._busy = [metrics.busy.labels(device) for device in devices]
        self._launches = {
            (profile, kind): metrics.launches.labels(str(profile), kind) for profile in profiles for kind in KINDS
        }

    def launched(self, post: Post, job: Job, ended: float, error: FlameError | None) -> None:
        """A launch of `post` has ended, or was given up."""
        assert post.attempt is not None
        times = (post.began, *post.attempt.times[: 1 if error else 2])
        self._timeline.launched(job, executor=post.number, device=post.name, times=times, ended=ended, error=error)
        self._busy[post.device].inc(ended - post.began)
        self._launches[job.launch.profile, job.launch.kind].inc()
        self._padding.inc(job.slots - job.candidates)

    def answered(self, ticket: Ticket) -> None:
        """A request has ended. What goes wrong here is told in the log, and its answer does not suffer from it."""
        try:
            if isinstance(ticket.error, RefusedError):
                self._refused(ticket.error.kind, ticket.priority).inc()
            self._timeline.answered(ticket)
        except Exception:
            _log.exception("request %d cannot be written down", ticket.number)
