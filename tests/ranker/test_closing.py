"""Closing a ranker: idle, busy, and while a store hangs."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from flame.errors import ExecutionError, ShuttingDown
from flame.orchestrator.pool import Orchestrator
from flame.records import Features, RankRequest
from tests.faulty_engine import nth, until


def open_when_stopped(orchestrator: Orchestrator, gate: threading.Event) -> None:
    """Holds launches until all that waits has been cut."""
    while not orchestrator._stopped:
        time.sleep(0.001)
    gate.set()


def test_closing_while_busy_ends_every_request_and_counts_the_cut(bench) -> None:
    one = bench(max_in_flight=30, keep_states=0)
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    one.engine.fails = nth(1)
    with pytest.raises(ExecutionError):
        one.ranker.rank(request)
    until(lambda: one.metrics.registry.get_sample_value("flame_executors", {"device": "cpu", "state": "running"}) == 1)
    for _ in one.engine.log:
        assert one.engine.entered.acquire(timeout=60)
    one.engine.gate.clear()
    answers = [one.ranker.start(request) for _ in range(20)]
    assert one.engine.entered.acquire(timeout=60)
    opening = threading.Thread(target=open_when_stopped, args=(one.ranker._orchestrator, one.engine.gate))
    opening.start()
    cut = one.ranker.close(0.02)
    opening.join()
    errors = [answer.exception(0) for answer in answers]
    assert cut == sum(isinstance(error, ShuttingDown) for error in errors) == 19
    assert one.engine.closed
    assert one.clean()
    assert one.ranker.close() == 0, "closing twice does nothing"
    with pytest.raises(ShuttingDown):
        one.ranker.start(request)


def test_closing_with_patience_cuts_nobody(bench) -> None:
    one = bench(max_in_flight=30)
    answers = [one.ranker.start(RankRequest(user=1, candidates=np.arange(1, 5))) for _ in range(20)]
    assert one.ranker.close(60.0) == 0
    assert all(answer.exception(0) is None for answer in answers)


def test_a_store_that_hangs_holds_up_neither_close_nor_the_answers_of_others(
    bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flame.ranker._LAST_GATHER_S", 0.05)
    one = bench()
    entered, go = threading.Event(), threading.Event()
    inner = one.features.gather

    def hang(request: RankRequest) -> Features:
        if request.user == 7:
            entered.set()
            assert go.wait(60)
        return inner(request)

    one.features.gather = hang
    stuck = one.ranker.start(RankRequest(user=7, candidates=np.arange(1, 5)))
    assert entered.wait(60)
    assert one.ranker.rank(RankRequest(user=1, candidates=np.arange(1, 5))).scores.shape[0] == 4
    one.ranker.close()
    assert not stuck.done()
    one.features._store.user(1, 1, None)  # still open: somebody reads it
    go.set()
    with pytest.raises(ShuttingDown):
        stuck.result(60)
