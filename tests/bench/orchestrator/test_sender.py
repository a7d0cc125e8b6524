"""Who sends what and when, over an engine that answers at once, and over one that does not answer."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from flame.bench.load.record import Window, latencies_ms
from flame.bench.orchestrator.idle import IdleEngine
from flame.bench.orchestrator.record import Record
from flame.bench.orchestrator.sender import Sender
from flame.bench.orchestrator.traffic import Traffic
from flame.config import OrchestratorConfig
from flame.engine.backends.base import LaunchBuffers
from flame.metrics import Metrics
from flame.orchestrator.pool import Orchestrator

Start = Callable[..., Orchestrator]

ALL = Window(0.0, 1e9)


class GatedEngine(IdleEngine):
    """Its launches wait until the gate is open."""

    def __init__(self, like: IdleEngine) -> None:
        super().__init__(like)
        self.gate = threading.Event()

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        self.gate.wait()


@pytest.fixture
def gated(engine: IdleEngine) -> Iterator[tuple[Orchestrator, threading.Event]]:
    """An orchestrator whose launches stand still until its gate is opened."""
    slow = GatedEngine(engine)
    orchestrator = Orchestrator(slow, OrchestratorConfig(policy="implicit", max_in_flight=5), Metrics())
    yield orchestrator, slow.gate
    slow.gate.set()
    orchestrator.close()


def sender(
    orchestrator: Orchestrator, traffic: Traffic, record: Record, users: Sequence[int] | None = None, **more: float
) -> Sender:
    return Sender(orchestrator, traffic, record, users or itertools.count(), time.monotonic(), **more)


def settle(orchestrator: Orchestrator) -> None:
    assert not orchestrator.admission.drain(60)


def test_open_loop_sends_each_when_it_is_due_and_none_before(start: Start, traffic: Traffic) -> None:
    orchestrator, due = start(max_in_flight=100), np.sort(np.random.default_rng(0).uniform(0, 0.2, 60))
    record = Record(len(due))
    sender(orchestrator, traffic, record).open_loop(due)
    settle(orchestrator)
    outcomes = record.outcomes()
    assert [one.due for one in outcomes] == due.tolist()
    assert all(one.due <= one.sent <= one.done for one in outcomes)
    assert [one.candidates for one in outcomes] == [traffic.counts[index % 40] for index in range(60)]
    assert {one.reply.outcome for one in outcomes} == {"ok"}
    assert all(one.reply.stages["queue"] >= 0 for one in outcomes)


def test_a_request_that_was_sent_late_is_late(start: Start, traffic: Traffic) -> None:
    """No coordinated omission: what is due in the past has waited since then."""
    orchestrator, record = start(), Record(1)
    sender(orchestrator, traffic, record).open_loop(np.array([-2.0]))
    settle(orchestrator)
    assert latencies_ms(record.outcomes())[0] >= 2000.0


def test_closed_loop_keeps_as_many_in_flight_as_it_was_told(
    gated: tuple[Orchestrator, threading.Event], traffic: Traffic
) -> None:
    orchestrator, gate = gated
    record = Record(50)
    thread = threading.Thread(target=sender(orchestrator, traffic, record).closed_loop, args=(5, 60.0))
    thread.start()
    while record.sent < 5:
        time.sleep(0.001)
    time.sleep(0.02)
    assert record.sent == orchestrator.admission.in_flight == 5
    gate.set()
    thread.join(60)
    settle(orchestrator)
    assert record.sent == 50, "it ends with the record"
    assert {one.reply.outcome for one in record.outcomes()} == {"ok"}


def test_closed_loop_ends_when_its_time_is_over(start: Start, traffic: Traffic) -> None:
    orchestrator, record = start(), Record(1_000_000)
    sender(orchestrator, traffic, record).closed_loop(2, 0.05)
    settle(orchestrator)
    assert 0 < record.sent < len(record)
    assert record.last_due < 0.05


def test_refusals_and_what_was_dropped_later_are_told_apart(
    gated: tuple[Orchestrator, threading.Event], traffic: Traffic
) -> None:
    orchestrator, gate = gated
    record = Record(9)
    sender(orchestrator, traffic, record, deadline_s=0.2).open_loop(np.zeros(9))
    time.sleep(0.25)
    gate.set()
    settle(orchestrator)
    kinds = [one.reply.outcome for one in record.outcomes()]
    assert record.accepted.sum() == 9 - len(record.refusals_ms(ALL))
    assert set(kinds[int(record.accepted.sum()) :]) <= {"queue_full", "deadline_exceeded"}
    assert len(record.refusals_ms(ALL)) >= 4, "five are as many as may be in flight"
    assert not record.in_time_share(ALL, 200.0), "the gate was closed for longer"


def test_only_a_user_who_comes_again_finds_the_history(start: Start, traffic: Traffic) -> None:
    orchestrator, users = start(keep_states=8), [7] * 20
    for reused, record, given in ((0.0, Record(20), range(100, 120)), (19 / 20, Record(20), users)):
        sending = sender(orchestrator, traffic, record, given)
        sending.closed_loop(1, 60.0)
        settle_by_waiting(orchestrator)
        assert record.reuse_share(ALL) == pytest.approx(reused)


def settle_by_waiting(orchestrator: Orchestrator) -> None:
    while orchestrator.admission.in_flight:
        time.sleep(0.001)


def test_an_empty_window_has_no_shares() -> None:
    record, window = Record(3), Window(5.0, 6.0)
    record.sending(0, 1.0, 1.0, 8)
    assert record.reuse_share(window) is record.in_time_share(window, 10.0) is None
    assert len(record.refusals_ms(window)) == 0
    assert [one.reply.outcome for one in record.outcomes()] == ["timeout"]
