"""What breaks fails its own request, is told, and leaks nothing."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from msgspec.structs import replace

from flame.config import Config, EngineConfig
from flame.engine.package import ModelPackage
from flame.errors import ExecutionError, FlameError, QueueFull, StoreUnavailable
from flame.ranker import Ranker
from flame.records import RankRequest
from tests.faulty_engine import nth
from tests.ranker.parts import close_to
from tests.ranker.world import FEATURES, filled_store, requests


def test_a_failed_launch_fails_its_request_and_the_ranker_goes_on(bench, caplog: pytest.LogCaptureFixture) -> None:
    one = bench()
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    one.engine.fails = nth(1)
    with pytest.raises(ExecutionError, match="RuntimeError"):
        one.ranker.rank(request)
    assert "0xdeadbeef" in caplog.text
    close_to(one.ranker.rank(request), one.oracle(request))
    assert one.clean()


def test_features_of_a_launch_that_was_given_up_are_lent_to_nobody_again(bench) -> None:
    """The launch may still read them; whoever asked has their answer, and their permit is given back."""
    one = bench(max_in_flight=1, launch_limit_ms=50.0)
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    one.engine.hangs = nth(1)
    with pytest.raises(ExecutionError, match="given up"):
        one.ranker.rank(request)
    (lost,) = one.features.lent.values()
    before = lost.words.copy()
    one.engine.release()
    close_to(one.ranker.rank(request), one.oracle(request))
    assert (lost.words == before).all()
    assert list(one.features.lent.values()) == [lost]
    one.features.lent.clear()
    assert one.clean()


def test_a_thread_that_starts_requests_may_share_the_core_of_those_who_launch(bench) -> None:
    """Where they share none, as on a CPU, it stays where it is."""
    one = bench(executors=2)
    before = os.sched_getaffinity(0)
    one.ranker.bind_thread()
    one.ranker.give_way()
    assert os.sched_getaffinity(0) == before


def test_scores_that_are_no_numbers_are_an_error_and_not_an_answer(bench) -> None:
    one = bench()
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    one.engine.spoils = True
    with pytest.raises(ExecutionError, match=r"1 of \d+ scores"):
        one.ranker.rank(request)
    one.engine.spoils = False
    close_to(one.ranker.rank(request), one.oracle(request))
    assert one.clean()


def test_failing_features_fail_the_request_and_give_the_permit_back(bench) -> None:
    one = bench(max_in_flight=1)
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    one.features.fails = True
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="on fire"):
            one.ranker.rank(request)
    one.features.fails = False
    close_to(one.ranker.rank(request), one.oracle(request))
    assert one.ranker.statistics().failed == 3


def test_nothing_leaks_in_a_thousand_mixed_outcomes(bench) -> None:
    one = bench(max_in_flight=12, candidates=(6, 23), executors=2)
    chance = np.random.default_rng(3)
    one.engine.fails = lambda *_: chance.random() < 0.03
    asked = requests(one.spec.input, 50, seed=9)
    expected = [one.oracle(request) for request in asked]
    outcomes: dict[str, int] = {}

    def run(number: int) -> str:
        request = asked[number % 50]
        if number % 9 == 0:
            request = replace(request, deadline=time.monotonic() + 0.001)
        if number % 13 == 0:
            request = replace(request, candidates=np.arange(1, 99))
        try:
            answer = one.ranker.start(request)
            if number % 7 == 0:
                answer.cancel()
            close_to(answer.result(60), expected[number % 50])
        except QueueFull:
            time.sleep(0.005)
            return "QueueFull"
        except (FlameError, CancelledError) as error:
            return type(error).__name__
        return "ok"

    with ThreadPoolExecutor(16) as clients:
        for outcome in clients.map(run, range(1000)):
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert {"ok", "TooManyCandidates", "ExecutionError", "CancelledError"} <= set(outcomes)
    assert outcomes["ok"] > 50
    one.ranker._orchestrator.admission.drain(60)
    assert one.clean()


def test_a_load_that_fails_closes_what_it_opened(package: ModelPackage, tmp_path) -> None:
    store = filled_store(package.spec.input)
    config = Config(features=FEATURES, engine=EngineConfig(backend="no such backend", artifact=str(tmp_path)))
    with pytest.raises(FlameError, match="no such backend"):
        Ranker.load(f"preset:{package.spec.name}", config, store=store)
    with pytest.raises(StoreUnavailable):
        store.user(1, 1, None)


def test_no_thread_to_be_had_refuses_the_request_and_gives_its_permit_back(
    bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bench()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            one.ranker.start(RankRequest(user=1, candidates=np.arange(1, 5)))
    assert one.features.gathered == 0
    assert one.clean()
    one.ranker.rank(RankRequest(user=1, candidates=np.arange(1, 5)))
