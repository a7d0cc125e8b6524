"""One run: requests sent for some seconds, and all that was seen meanwhile."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from flame.bench.load.arrivals import poisson
from flame.bench.load.record import Window
from flame.bench.orchestrator.occupancy import Occupancy, occupancy
from flame.bench.orchestrator.record import Record
from flame.bench.orchestrator.sender import Sender
from flame.bench.orchestrator.setting import OrchestratorBench
from flame.bench.orchestrator.traffic import Traffic
from flame.bench.orchestrator.usage import Usage, usage
from flame.bench.progress import Show
from flame.errors import ExecutionError
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.timeline import LaunchSpan

MOST_REQUESTS = 2**19
"""In a closed loop, whose rate nobody knows before; a run that sends more ends there."""

_FIRST_USER = 2**32
"""Of those who come once; users who come again have lower numbers."""

_LAST_ANSWER_S = 30.0
_PATIENCE_S = 0.02
_STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured in `window` of a run; `spans` are its launches, as many as the timeline still held."""

    record: Record
    window: Window
    spans: tuple[LaunchSpan, ...]
    occupancy: Occupancy
    before: Usage
    after: Usage


class Runs:
    """Runs on one orchestrator, whose engine's memory is on `device`."""

    def __init__(
        self, bench: OrchestratorBench, traffic: Traffic, orchestrator: Orchestrator, device: str, show: Show
    ) -> None:
        self.orchestrator = orchestrator
        self._bench, self._traffic, self._device, self._show = bench, traffic, device, show
        self._window = Window(bench.warm_up_s, bench.warm_up_s + bench.seconds)
        self._users = itertools.count(_FIRST_USER)

    def closed(self, text: str, depth: int, users: Iterable[int] | None = None) -> Run:
        """`depth` requests on their way at all times."""
        record = Record(MOST_REQUESTS)
        return self._run(text, record, lambda sender: sender.closed_loop(depth, self._window.end), users)

    def open(self, text: str, rate: float, deadline_s: float | None = None) -> Run:
        """Poisson arrivals at `rate` requests per second."""
        due = poisson(rate, self._window.end, self._bench.seed)
        return self._run(text, Record(len(due)), lambda sender: sender.open_loop(due), None, deadline_s)

    def _run(
        self,
        text: str,
        record: Record,
        loop: Callable[[Sender], None],
        users: Iterable[int] | None,
        deadline_s: float | None = None,
    ) -> Run:
        with _collector_at_rest(), ThreadPoolExecutor(1, "flame-bench-sender") as threads:
            start = time.monotonic() + _PATIENCE_S
            sender = Sender(self.orchestrator, self._traffic, record, users or self._users, start, deadline_s)
            sending = threads.submit(loop, sender)
            before = self._usage_at(self._window.start, start, text)
            after = self._usage_at(self._window.end, start, text)
            sending.result()
            self._settle()
        window = self._window
        if record.sent == len(record) == MOST_REQUESTS:
            window = Window(window.start, record.last_due)
        return _seen(record, window, self.orchestrator.timeline.snapshot().launches, start, before, after)

    def _usage_at(self, moment: float, start: float, text: str) -> Usage:
        """Sleeps up to a moment of the run, showing how far it is; what was used by then."""
        while (now := time.monotonic() - start) < moment:
            self._show(text, max(now, 0.0), self._window.end)
            time.sleep(min(_STEP_S, moment - now))
        return usage(self._device)

    def _settle(self) -> None:
        """Waits until all are answered. Raises `ExecutionError` when that does not come."""
        limit = time.monotonic() + _LAST_ANSWER_S
        while left := self.orchestrator.admission.in_flight:
            if time.monotonic() > limit:
                raise ExecutionError(f"{left} requests are not answered {_LAST_ANSWER_S:g} s after the end of a run")
            time.sleep(_STEP_S / 100)


def _seen(
    record: Record, window: Window, launches: tuple[LaunchSpan, ...], start: float, before: Usage, after: Usage
) -> Run:
    """The launches of the window; where the timeline has forgotten its beginning, occupancy is that of the rest."""
    first = start + window.start
    if launches and launches[0].ended > first:
        first = launches[0].ended
    spans = tuple(span for span in launches if span.ended >= first and span.launched < start + window.end)
    return Run(record, window, spans, occupancy(spans, first, start + window.end), before, after)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """What is there before a run is no garbage and is not looked through during it, as in a server."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
