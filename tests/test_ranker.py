"""The whole path in process, against the oracle and under trouble."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flame.config import Config, EngineConfig, FeaturesConfig, OrchestratorConfig
from flame.engine.backends.base import LaunchBuffers
from flame.engine.backends.eager import EagerEngine
from flame.engine.package import ModelPackage, load
from flame.engine.spec import Profile
from flame.errors import (
    DeadlineExceeded,
    ExecutionError,
    FlameError,
    QueueFull,
    RequestError,
    ShuttingDown,
    StoreUnavailable,
    TooManyCandidates,
    UnknownTask,
)
from flame.features.pipeline import FeaturePipeline
from flame.features.store.memory import MemoryStore
from flame.metrics import Metrics
from flame.orchestrator.pool import Orchestrator
from flame.orchestrator.profiles import default_profiles
from flame.ranker import Ranker
from flame.records import Features, History, RankRequest, RankResponse
from flame.schema import InputSchema, RowLayout

MODELS = ["tiny-climber", "tiny-hstu"]
ITEMS = 400
USERS = 40
FEATURES = FeaturesConfig(store="memory", cache_rows=1000, fetch_timeout_ms=60_000.0)


def columns(row: RowLayout, count: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Random values of every field."""
    return {
        field.name: rng.integers(0, field.vocabulary, (count, *field.shape))
        if field.vocabulary
        else rng.normal(size=(count, *field.shape)).astype(np.float32)
        for field in row.fields
    }


def history(schema: InputSchema, events: int, rng: np.random.Generator) -> History:
    return History(
        rng.integers(1, ITEMS + 1, events),
        rng.integers(0, schema.actions, events),
        np.sort(rng.integers(0, 10**6, events)),
    )


def filled_store(schema: InputSchema) -> MemoryStore:
    """Items and users with random features; user `n` has `n` events, up to the model's limit."""
    rng = np.random.default_rng(1)
    store = MemoryStore(schema)
    store.put_items(np.arange(1, ITEMS + 1), columns(schema.item_row, ITEMS, rng))
    users = np.arange(1, USERS + 1)
    histories = {int(user): history(schema, min(int(user), schema.max_history), rng) for user in users}
    store.put_users(users, columns(schema.user_row, USERS, rng), histories)
    return store


class WatchedPipeline(FeaturePipeline):
    """Checks that every buffer comes back once, spoils it then, and can fail."""

    fails = False
    gathered = 0

    def gather(self, request: RankRequest) -> Features:
        self.gathered += 1
        if self.fails:
            raise StoreUnavailable("the store is on fire")
        features = super().gather(request)
        self.lent[id(features)] = features
        return features

    def release(self, features: Features) -> None:
        assert self.lent.pop(id(features)) is features, "released twice"
        features.words[:] = np.array(np.nan, np.float32).view(np.int32)
        super().release(features)

    @property
    def lent(self) -> dict[int, Features]:
        return self.__dict__.setdefault("_lent", {})


class GatedEngine(EagerEngine):
    """The oracle, which can be held and made to fail."""

    def __init__(self, package: ModelPackage, profiles: tuple[Profile, ...]) -> None:
        super().__init__(package, profiles)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fails: Callable[[], bool] = lambda: False
        self.spoils = False
        self.closed = False
        self.launches = 0

    def rank(self, buffers: LaunchBuffers, users: int) -> None:
        self._pass()
        super().rank(buffers, users)
        self._spoil(buffers)

    def score(self, buffers: LaunchBuffers, states: object) -> None:
        self._pass()
        super().score(buffers, states)
        self._spoil(buffers)

    def _spoil(self, buffers: LaunchBuffers) -> None:
        """One score that is no number, if wanted."""
        if self.spoils:
            buffers.scores[0, 0, 0] = np.nan

    def _pass(self) -> None:
        self.launches += 1
        self.entered.release()
        assert self.gate.wait(60), "the test forgot to open the gate"
        if self.fails():
            raise RuntimeError("device memory at 0xdeadbeef is gone")

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        super().close()


class Bench:
    """A ranker and its parts, for tests to reach into."""

    def __init__(self, package: ModelPackage, settings: OrchestratorConfig) -> None:
        schema = package.spec.input
        self.spec = package.spec
        self.package = package
        self.metrics = Metrics()
        self.engine = GatedEngine(package, default_profiles(package.spec, settings))
        self.features = WatchedPipeline(schema, filled_store(schema), FEATURES, self.metrics)
        self.ranker = Ranker(self.engine, self.features, Config(orchestrator=settings), self.metrics)
        self._reference = FeaturePipeline(schema, filled_store(schema), FEATURES, Metrics())

    def oracle(self, request: RankRequest) -> NDArray[np.float32]:
        """Scores of all tasks from one launch of exactly the request's size, in which nothing is split or copied."""
        features = self._reference.gather(request)
        count = features.layout.candidates
        profile = Profile(1, self.spec.input.max_history, count)
        engine = EagerEngine(self.package, [profile])
        scores = np.full((1, count, len(self.spec.tasks)), np.nan, np.float32)
        words = features.words[: features.layout.words]
        engine.rank(
            LaunchBuffers(profile, features.layout, words, scores, torch.from_numpy(words), torch.from_numpy(scores)),
            1,
        )
        self._reference.release(features)
        return scores[0]

    def clean(self) -> bool:
        """Whether nothing is held that a finished request should have given back."""
        orchestrator = self.ranker._orchestrator
        return (
            not self.features.lent
            and orchestrator.admission.in_flight == 0
            and orchestrator._schedule.alive == orchestrator._schedule.waiting == 0
        )

    def close(self) -> None:
        self.engine.gate.set()
        self.ranker.close()
        self._reference.close()
        assert self.clean()
        assert self.engine.closed


@pytest.fixture(scope="module", params=MODELS)
def package(request: pytest.FixtureRequest) -> ModelPackage:
    return load(f"preset:{request.param}")


@pytest.fixture
def bench(package: ModelPackage) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**settings: object) -> Bench:
        made.append(Bench(package, OrchestratorConfig(**settings)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def requests(schema: InputSchema, count: int, seed: int = 0) -> list[RankRequest]:
    """Odd sizes, histories from the request and from the store, unknown items and users, every scenario."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        candidates = rng.integers(1, ITEMS + 20, rng.integers(1, schema.max_candidates + 1))
        events = int(rng.integers(0, schema.max_history + 1))
        made.append(
            RankRequest(
                user=int(rng.integers(1, USERS + 5)),
                candidates=candidates,
                history=history(schema, events, rng) if number % 2 else None,
                scenario=int(rng.integers(0, schema.scenarios)),
                context={"hour": int(rng.integers(0, 25))} if number % 3 else {},
                request_id=f"request {number}",
            )
        )
    return made


def open_when_stopped(orchestrator: Orchestrator, gate: threading.Event) -> None:
    """Holds launches until all that waits has been cut."""
    while not orchestrator._stopped:
        time.sleep(0.001)
    gate.set()


def close_to(response: RankResponse, expected: NDArray[np.float32], tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(response.scores, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="one launch each"),
        pytest.param({"candidates": (3, 7), "executors": 2}, id="split over two executors"),
        pytest.param({"candidates": (5, 23), "users": (1, 3), "executors": 2}, id="split and packed"),
    ],
)
def test_concurrent_requests_get_the_scores_of_the_oracle(bench, settings: dict[str, object]) -> None:
    one = bench(max_in_flight=100, **settings)
    asked = requests(one.spec.input, 60)
    with ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(one.ranker.start, asked))
    for request, answer in zip(asked, answers, strict=True):
        response = answer.result(60)
        assert response.request_id == request.request_id
        close_to(response, one.oracle(request))


def test_the_default_engine_loaded_by_name_agrees_with_the_oracle(bench, package: ModelPackage, tmp_path) -> None:
    one = bench()
    config = Config(
        features=FEATURES,
        engine=EngineConfig(artifact=str(tmp_path / "artifact")),
        orchestrator=OrchestratorConfig(candidates=(9, 23), executors=2),
    )
    steps: list[str] = []
    with Ranker.load(
        f"preset:{package.spec.name}",
        config,
        store=filled_store(package.spec.input),
        progress=lambda step, done, steps_: steps.append(step),
    ) as ranker:
        assert steps, "building reports progress"
        assert ranker.backend != "eager"
        assert ranker.spec == package.spec
        for request in requests(package.spec.input, 30, seed=3):
            response = ranker.rank(request)
            close_to(response, one.oracle(request), 1e-4)
            assert response.backend == ranker.backend


def test_a_split_request_equals_the_same_request_in_one_launch(bench) -> None:
    whole, split = bench(), bench(candidates=(2,))
    request = RankRequest(user=30, candidates=np.arange(1, 24))
    one, many = whole.ranker.rank(request), split.ranker.rank(request)
    assert one.launches == 1
    assert many.launches >= 12
    close_to(many, one.scores)


def test_duplicate_candidates_are_scored_in_place_and_equally(bench) -> None:
    ranker = bench(candidates=(4,)).ranker
    response = ranker.rank(RankRequest(user=7, candidates=np.array([5, 9, 5, 11, 9, 5, 12])))
    np.testing.assert_allclose(response.scores[[2, 5]], response.scores[[0, 0]], atol=1e-6)
    np.testing.assert_allclose(response.scores[4], response.scores[1], atol=1e-6)
    assert len(np.unique(response.scores[:, 0].round(6))) == 4


def test_a_history_sent_equals_the_same_history_stored(bench) -> None:
    one = bench()
    stored = filled_store(one.spec.input).user(31, 99, None)
    assert stored is not None
    request = RankRequest(user=31, candidates=np.arange(1, 12))
    sent = replace(request, history=stored.history)
    close_to(one.ranker.rank(sent), one.ranker.rank(request).scores, 1e-6)
    empty = replace(request, history=history(one.spec.input, 0, np.random.default_rng()))
    assert np.abs(one.ranker.rank(empty).scores - one.ranker.rank(sent).scores).max() > 1e-3


def test_tasks_come_as_asked_for(bench) -> None:
    ranker = bench().ranker
    request = RankRequest(user=7, candidates=np.arange(1, 6))
    full = ranker.rank(request)
    assert full.tasks == ("complete_play", "like", "share")
    some = ranker.rank(replace(request, tasks=("share", "complete_play")))
    assert some.tasks == ("share", "complete_play")
    np.testing.assert_allclose(some.scores, full.scores[:, [2, 0]], atol=1e-6)
    assert some.scores.flags.c_contiguous
    with pytest.raises(UnknownTask):
        ranker.rank(replace(request, tasks=("share", "nonsense")))


def test_a_response_says_what_served_it_and_what_was_amiss(bench) -> None:
    one = bench(candidates=(5,))
    good = one.ranker.rank(RankRequest(user=7, candidates=np.arange(1, 6)))
    assert (good.model, good.version, good.backend) == (one.spec.name, "1", "eager")
    assert not good.counts.degraded
    times = good.times
    stages = (times.admission, times.features, times.queue, times.compute, times.respond)
    assert min(stages) >= 0
    assert sum(stages) == pytest.approx(times.total)
    bad = one.ranker.rank(RankRequest(user=7, candidates=np.array([1, ITEMS + 1, 10**9])))
    assert bad.counts.unknown == 2


def test_wrong_requests_are_refused_before_any_work(bench) -> None:
    one = bench()
    limit = one.spec.input.max_candidates
    with pytest.raises(TooManyCandidates):
        one.ranker.start(RankRequest(user=1, candidates=np.arange(1, limit + 2)))
    with pytest.raises(RequestError):
        one.ranker.start(RankRequest(user=1, candidates=np.zeros(0, np.int64)))
    with pytest.raises(DeadlineExceeded):
        one.ranker.start(RankRequest(user=1, candidates=np.arange(1, 5), deadline=time.monotonic() - 1))
    assert one.clean()
    assert one.ranker.statistics().failed == 0


def test_no_more_than_the_limit_are_let_in(bench) -> None:
    one = bench(max_in_flight=3)
    one.engine.gate.clear()
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    answers = [one.ranker.start(request) for _ in range(3)]
    for _ in range(20):
        with pytest.raises(QueueFull):
            one.ranker.start(request)
    one.engine.gate.set()
    for answer in answers:
        close_to(answer.result(60), one.oracle(request))
    assert one.metrics.registry.get_sample_value("flame_in_flight") == 0
    one.ranker.rank(request)


def test_a_caller_who_has_an_answer_may_ask_again_at_once(bench) -> None:
    ranker = bench(max_in_flight=1).ranker
    for _ in range(50):
        ranker.rank(RankRequest(user=1, candidates=np.arange(1, 5)))


def test_the_default_deadline_holds_for_requests_without_one(bench) -> None:
    one = bench(default_deadline_ms=200.0)
    one.engine.gate.clear()
    hurried = RankRequest(user=1, candidates=np.arange(1, 5))
    patient = replace(hurried, deadline=time.monotonic() + 600)
    running = one.ranker.start(patient)
    assert one.engine.entered.acquire(timeout=60)
    late, waiting = one.ranker.start(hurried), one.ranker.start(patient)
    time.sleep(0.25)
    one.engine.gate.set()
    assert running.result(60).launches == waiting.result(60).launches == 1
    with pytest.raises(DeadlineExceeded):
        late.result(60)


def test_cancelling_ends_the_wait_at_once_and_drops_the_work(bench) -> None:
    one = bench(max_in_flight=3)
    one.engine.gate.clear()
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    running = one.ranker.start(request)
    assert one.engine.entered.acquire(timeout=60)
    gone = one.ranker.start(request)
    assert gone.cancel()
    with pytest.raises(CancelledError):
        gone.result(0)
    one.engine.gate.set()
    running.result(60)
    assert not running.cancel()
    one.ranker.rank(request)
    assert one.engine.launches == 2


def test_a_failed_launch_fails_its_request_and_the_ranker_goes_on(bench, caplog: pytest.LogCaptureFixture) -> None:
    one = bench()
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    one.engine.fails = lambda: True
    with pytest.raises(ExecutionError, match="RuntimeError"):
        one.ranker.rank(request)
    assert "0xdeadbeef" in caplog.text
    one.engine.fails = lambda: False
    close_to(one.ranker.rank(request), one.oracle(request))
    assert one.clean()


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


def test_closing_while_busy_ends_every_request_and_counts_the_cut(bench) -> None:
    one = bench(max_in_flight=30)
    request = RankRequest(user=1, candidates=np.arange(1, 5))
    one.engine.fails = lambda: True
    with pytest.raises(ExecutionError):
        one.ranker.rank(request)
    one.engine.fails = lambda: False
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


def test_nothing_leaks_in_a_thousand_mixed_outcomes(bench) -> None:
    one = bench(max_in_flight=12, candidates=(6, 23), executors=2)
    chance = np.random.default_rng(3)
    one.engine.fails = lambda: chance.random() < 0.03
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


def test_statistics_and_metrics_add_up(bench) -> None:
    one = bench(candidates=(5,))
    asked = requests(one.spec.input, 20)
    responses = [one.ranker.rank(request) for request in asked]
    one.engine.fails = lambda: True
    with pytest.raises(ExecutionError):
        one.ranker.rank(asked[0])
    done = one.ranker.statistics()
    pairs = sum(len(request.candidates) for request in asked)
    assert (done.succeeded, done.failed, done.pairs) == (20, 1, pairs)
    assert done.launches == sum(response.launches for response in responses)
    assert done.degraded == sum(response.counts.degraded for response in responses)
    assert done.times.total == pytest.approx(sum(response.times.total for response in responses))
    assert 0 < time.time() - done.last_answer < 60
    value = one.metrics.registry.get_sample_value
    assert value("flame_pairs_total") == pairs
    assert value("flame_request_seconds_count") == 20
    assert value("flame_stage_seconds_count", {"stage": "compute"}) == 20


def test_a_load_that_fails_closes_what_it_opened(package: ModelPackage, tmp_path) -> None:
    store = filled_store(package.spec.input)
    config = Config(features=FEATURES, engine=EngineConfig(backend="no such backend", artifact=str(tmp_path)))
    with pytest.raises(FlameError, match="no such backend"):
        Ranker.load(f"preset:{package.spec.name}", config, store=store)
    with pytest.raises(StoreUnavailable):
        store.user(1, 1, None)


def test_a_request_cancelled_before_its_thread_starts_costs_nothing(bench) -> None:
    one = bench()
    entered, go = threading.Event(), threading.Event()
    inner = one.ranker._gather

    def slow(*arguments: object) -> None:
        entered.set()
        assert go.wait(60)
        inner(*arguments)

    one.ranker._gather = slow
    answer = one.ranker.start(RankRequest(user=1, candidates=np.arange(1, 5)))
    assert entered.wait(60)
    answer.cancel()
    go.set()
    one.ranker._orchestrator.admission.drain(60)
    assert one.features.gathered == one.engine.launches == 0
    assert one.clean()


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
