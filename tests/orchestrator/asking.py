"""Asking an orchestrator, for tests that want to wait for the answer, and what to ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from flame.errors import FlameError
from flame.orchestrator.outcome import Outcome, Scored
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.ticket import Ticket
from flame.records import Features
from tests.faulty_engine import FaultyEngine


class Asked(Future[Scored]):
    """What becomes of one request; `ticket` is what withdraws it. Told twice, it raises in the executor's thread."""

    ticket: Ticket

    def end(self, outcome: Outcome) -> None:
        if isinstance(outcome, FlameError):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)


def nobody(outcome: Outcome) -> None:
    """Is told, and does nothing."""


def ask(orchestrator: Orchestrator, features: Features, **whose: Any) -> Asked:
    """Submits a request. Raises what `submit` raises."""
    asked = Asked()
    asked.ticket = orchestrator.submit(features, asked.end, **whose)
    return asked


def sample(make: Callable[..., Features], count: int, seed: int = 0, longest: int = 15) -> list[Features]:
    """Requests of odd sizes: one candidate, sizes of profiles and their neighbours, the limit, no history."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 15, 16, 17, 63, 64, 65, 100, 129, 199, 200], count)
    return [
        make(seed * 100_000 + number, int(size), [int(n) for n in rng.integers(0, longest + 1, 2)])
        for number, size in enumerate(sizes)
    ]


def cancel_behind_another(orchestrator: Orchestrator, engine: FaultyEngine, first: Features, second: Features) -> Asked:
    """What becomes of a request that is cancelled while a launch of another runs, which ends before this returns."""
    engine.gate.clear()
    running = ask(orchestrator, first)
    assert engine.entered.acquire(timeout=60)
    cancelled = threading.Event()
    gone = ask(orchestrator, second, cancelled=cancelled)
    cancelled.set()
    engine.gate.set()
    gone.exception(60)
    running.result(60)
    return gone
