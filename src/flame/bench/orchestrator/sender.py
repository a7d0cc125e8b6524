"""The sending side of a run: one thread that submits requests when they are due, or as soon as others are answered."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue

import numpy as np

from flame.bench.load.record import Seconds
from flame.bench.orchestrator.record import Record
from flame.bench.orchestrator.traffic import Traffic
from flame.errors import FlameError
from flame.orchestrator.outcome import Outcome, Scored
from flame.orchestrator.permit import Permit
from flame.orchestrator.pool import Orchestrator

_REHEARSALS = 5000
_SET_TIMER_SLACK = 29
_EARLY_S = 20e-6
"""A sleep ends that much later than asked, at best."""


class Sender:
    """Sends requests from the thread that calls a loop, as a `Ranker` would: permit, queue, answer, permit back.

    The thread is the run's own and does nothing else, so it is bound to the core of executors that share one, and gives
    way to them between two requests (`Orchestrator.bind_thread`). The request threads of a `Ranker`, which gather
    features, do neither.

    `users` are the users of the requests, one after the other. `start` is the moment, of `time.monotonic()`, from
    which all times count. `deadline_s` after it was due a request is late, and the orchestrator is told.
    """

    def __init__(
        self,
        orchestrator: Orchestrator,
        traffic: Traffic,
        record: Record,
        users: Iterable[int],
        start: float,
        deadline_s: float | None = None,
    ) -> None:
        self._orchestrator, self._traffic, self._record = orchestrator, traffic, record
        self._users = iter(users)
        self._start = start
        self._deadline_s = deadline_s
        self._ended: Callable[[], object] = lambda: None

    def open_loop(self, due: Seconds) -> None:
        """Sends one request at each of the times `due` `[n]`, whatever becomes of the others."""
        _sharpen_sleep()
        self._orchestrator.bind_thread()
        for index, at in enumerate(due.tolist()):
            _sleep_until(self._start + at)
            self._send(index, at)
            self._orchestrator.give_way()

    def closed_loop(self, depth: int, seconds: float) -> None:
        """Keeps `depth` requests on their way for so long, or until the record is full."""
        self._orchestrator.bind_thread()
        free: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            free.put(None)
        self._ended = partial(free.put, None)
        for index in range(len(self._record)):
            free.get()
            now = time.monotonic() - self._start
            if now >= seconds:
                break
            self._send(index, now)
            self._orchestrator.give_way()

    def _send(self, index: int, due: float) -> None:
        deadline = None if self._deadline_s is None else self._start + due + self._deadline_s
        user = next(self._users)
        request = self._traffic.request(index, user, deadline)
        self._record.sending(index, due, time.monotonic() - self._start, len(request.candidates))
        try:
            permit = self._orchestrator.admission.admit(request)
        except FlameError as error:
            self._refused(index, error)
            return
        self._record.admitted(index)
        try:
            answered = partial(self._answered, index, permit)
            self._orchestrator.submit(self._traffic.features(index, user), answered, deadline=deadline, user=user)
        except FlameError as error:
            permit.release()
            self._refused(index, error)

    def _answered(self, index: int, permit: Permit, outcome: Outcome) -> None:
        """On the thread that ran the last launch, where a `Ranker` makes its response."""
        now = time.monotonic() - self._start
        if isinstance(outcome, Scored):
            self._record.scored(index, now, outcome)
        else:
            self._record.failed(index, now, outcome.kind)
        permit.release(outcome)
        self._ended()

    def _refused(self, index: int, error: FlameError) -> None:
        self._record.failed(index, time.monotonic() - self._start, error.kind)
        self._ended()


def own_microseconds(traffic: Traffic) -> float:
    """What a request costs on the generator's side alone: making it and writing down what became of it."""
    record, scored = Record(_REHEARSALS), Scored(np.zeros((1, 1), np.float32), 0.0, 0.0, 1)
    start = time.thread_time()
    for index in range(_REHEARSALS):
        request = traffic.request(index, index, 1.0)
        traffic.features(index, index)
        record.sending(index, 0.0, time.monotonic(), len(request.candidates))
        record.admitted(index)
        record.scored(index, time.monotonic(), scored)
    return 1e6 * (time.thread_time() - start) / _REHEARSALS


def _sleep_until(moment: float) -> None:
    """Never spins: a thread that does holds Python's lock, which those who launch need."""
    while (left := moment - time.monotonic()) > 0:
        time.sleep(max(left - _EARLY_S, 1e-6))


def _sharpen_sleep() -> None:
    """Lets sleeps of this thread end when they should; Linux ends them up to 50 microseconds later by default."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_SET_TIMER_SLACK, 1)
