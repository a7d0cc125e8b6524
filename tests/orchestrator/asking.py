"""Asking an orchestrator, for tests that want to wait for the answer."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from flame.errors import FlameError
from flame.orchestrator.outcome import Outcome, Scored
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.ticket import Ticket
from flame.records import Features


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
