"""Validation must let a right engine pass and catch every kind of wrong one by name."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import torch

from flame.engine.agreement import compare_task, kendall, largest_difference, spread, top_overlap
from flame.engine.backends.eager import EagerEngine
from flame.engine.package import ModelPackage, load
from flame.engine.spec import Profile
from flame.engine.validate import validate
from flame.errors import EngineError
from flame.layout import CANDIDATES, EVENT_AGE

PROFILES = (Profile(1, 37, 23), Profile(3, 20, 8), Profile(2, 0, 5))


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return load("preset:tiny-climber-bias")


def failures(engine: EagerEngine, package: ModelPackage) -> set[str]:
    """The names of the checks that failed; `error` stands for disagreement with the oracle."""
    report = validate(engine, EagerEngine(package, PROFILES), requests=20, seed=3)
    assert report.passed == (not report.failures)
    tasks = {task.name for task in package.spec.tasks}
    return {
        "error" if (what := text.split(":")[0]) in tasks else what.removeprefix("isolation, ")
        for text in report.failures
    }


@pytest.mark.parametrize(
    "name",
    [
        *("tiny-climber", "tiny-climber-bias", "tiny-climber-causal", "tiny-hstu"),
        *("tiny-climber-appendable", "tiny-hstu-appendable"),
    ],
)
def test_a_right_engine_passes(name: str) -> None:
    package = load(f"preset:{name}")
    report = validate(EagerEngine(package, PROFILES), EagerEngine(package, PROFILES), requests=24, seed=1)
    assert report.passed, report.render()
    assert report.requests >= 24
    assert {result.check for result in report.isolation} == {
        *("repeat", "permutation", "subset", "split", "padding", "other users", "other profile", "encode + score"),
        *(["append"] if package.spec.appendable else []),
    }
    assert all(result.compared > 0 for result in report.isolation)
    assert all(task.kendall == task.top_overlap == 1.0 for task in report.tasks)


class Leaks(EagerEngine):
    """A candidate sees its neighbours."""

    def rank(self, buffers, users):
        super().rank(buffers, users)
        buffers.scores[:users] += 0.01 * np.roll(buffers.scores[:users], 1, axis=1)


class CountsSlots(EagerEngine):
    """The score drifts with the slot."""

    def rank(self, buffers, users):
        super().rank(buffers, users)
        buffers.scores[:users] += 1e-3 * np.arange(buffers.profile.candidates, dtype=np.float32)[:, None]


class DividesByTheBatch(EagerEngine):
    """A scale factor of the batch instead of the model."""

    def rank(self, buffers, users):
        super().rank(buffers, users)
        buffers.scores[:users] *= 1 + 0.01 * users


class KnowsItsProfile(EagerEngine):
    """Scores depend on how much room there is."""

    def rank(self, buffers, users):
        super().rank(buffers, users)
        buffers.scores[:users] += 1e-3 * buffers.profile.history


class ReadsGarbage(EagerEngine):
    """A word behind the last event has a say."""

    def rank(self, buffers, users):
        ages = buffers.layout.views(buffers.words).events[:, :, -1:, EVENT_AGE].copy()
        super().rank(buffers, users)
        if ages.size:
            buffers.scores[:users] += 1e-3 * (np.abs(ages[:users, -1, 0]) % 1000 / 1000)[:, None, None]


class Dithers(EagerEngine):
    """Two runs of one launch differ."""

    launches = 0

    def rank(self, buffers, users):
        super().rank(buffers, users)
        self.launches += 1
        buffers.scores[:users] += 1e-3 * (self.launches % 2)


class ForgetsTheLast(EagerEngine):
    """A tail that no block of threads writes."""

    def rank(self, buffers, users):
        last = buffers.scores[users - 1, -1].copy()
        super().rank(buffers, users)
        buffers.scores[users - 1, -1] = last


class ScoresOtherwise(EagerEngine):
    """The two steps do not add up to the one."""

    def score(self, buffers, states):
        super().score(buffers, states)
        buffers.scores[:] *= 1.01


class AppendsNothing(EagerEngine):
    """A state that holds the start of a history is left as it is."""

    def encode(self, buffers, states):
        prefixes = buffers.layout.views(buffers.words).header[: len(states), buffers.layout.record.prefix]
        if not prefixes.any():
            super().encode(buffers, states)


class ForgetsTheFirst(EagerEngine):
    """An append takes the start of the history for another one's."""

    def encode(self, buffers, states):
        prefixes = buffers.layout.views(buffers.words).header[: len(states), buffers.layout.record.prefix]
        for state, prefix in zip(states, prefixes, strict=True):
            if prefix:
                keys = state.tensors[0].clone()
                state.tensors = (keys.index_fill_(-2, torch.tensor([0]), 0.0), *state.tensors[1:])
        super().encode(buffers, states)


@pytest.mark.parametrize("wrong", [AppendsNothing, ForgetsTheFirst])
@pytest.mark.parametrize("name", ["tiny-climber-appendable", "tiny-hstu-appendable"])
def test_a_wrong_append_is_caught(wrong: type[EagerEngine], name: str) -> None:
    package = load(f"preset:{name}")
    assert failures(wrong(package, PROFILES), package) == {"append"}


class MixesUsers(EagerEngine):
    """Answers of two users change places."""

    def rank(self, buffers, users):
        super().rank(buffers, users)
        buffers.scores[:users] = buffers.scores[:users][::-1].copy()


WRONG = [
    (Leaks, {"permutation", "subset", "split"}, {"repeat"}),
    (CountsSlots, {"permutation", "subset", "split"}, {"repeat", "padding", "other users", "other profile"}),
    (DividesByTheBatch, {"other users"}, {"repeat", "permutation", "subset", "padding"}),
    (KnowsItsProfile, {"other profile"}, {"repeat", "permutation", "subset", "split", "padding", "other users"}),
    (ReadsGarbage, {"padding"}, {"repeat", "permutation", "subset"}),
    (Dithers, {"repeat"}, set()),
    (ForgetsTheLast, {"error"}, set()),
    (ScoresOtherwise, {"encode + score"}, {"error", "repeat", "permutation", "other users"}),
    (MixesUsers, {"error", "other users"}, {"repeat"}),
]


@pytest.mark.parametrize(("kind", "must_fail", "must_pass"), WRONG, ids=[kind.__name__ for kind, *_ in WRONG])
def test_a_wrong_engine_is_caught(
    kind: type[EagerEngine], must_fail: set, must_pass: set, package: ModelPackage
) -> None:
    found = failures(kind(package, PROFILES), package)
    assert must_fail <= found
    assert not must_pass & found


@pytest.mark.parametrize(
    "forgotten",
    [
        *("layers.0.log_temperature", "layers.2.qkv.bias", "layers.1.norm.weight", "layers.1.ffn_out.bias"),
        *("relative_bias.times", "relative_bias.scenario_scale", "fusion.layer.log_temperature", "fusion.excite.bias"),
        *("input.positions.weight", "head.gates.bias", "head.towers.out.bias", "input.item_features.dense.bias"),
    ],
)
def test_an_engine_that_forgets_one_tensor_is_caught(forgotten: str, package: ModelPackage) -> None:
    """This is why random weights are nowhere neutral."""
    neutral = package.weights[forgotten] * 0 + (1.0 if "scale" in forgotten or "norm.weight" in forgotten else 0.0)
    spoilt = ModelPackage(package.spec, {**package.weights, forgotten: neutral}, None, "spoilt")
    assert failures(EagerEngine(spoilt, PROFILES), package) == {"error"}


class AlmostIsolated(EagerEngine):
    """One bit of a score depends on what else is in the launch."""

    def rank(self, buffers, users):
        super().rank(buffers, users)
        counts = buffers.layout.views(buffers.words).header[:users, CANDIDATES]
        for user, count in enumerate(counts):
            buffers.scores[user] += np.spacing(np.float32(1)) * (count % 2)


@pytest.mark.parametrize(("backend", "exact"), [("eager", False), ("compiled", True), ("fused", True)])
def test_backends_that_promise_bitwise_isolation_are_held_to_the_bit(
    backend: str, exact: bool, package: ModelPackage
) -> None:
    engine = AlmostIsolated(package, PROFILES)
    engine.backend = backend
    found = failures(engine, package)
    assert "error" not in found
    assert {"subset", "split"} <= found if exact else not found


def test_the_report_is_told_as_text_and_as_data(package: ModelPackage) -> None:
    seen: list[tuple[int, int]] = []
    engine = CountsSlots(package, PROFILES)
    report = validate(
        engine, EagerEngine(package, PROFILES), requests=9, seed=2, progress=lambda *done: seen.append(done)
    )
    text = report.render()
    assert "tiny-climber-bias 1: backend eager (fp32, cpu) against eager" in text
    assert "FAILED isolation, permutation" in text
    assert text.endswith(f"{len(report.failures)} checks failed")
    assert max(map(len, text.splitlines())) <= 110
    data = json.loads(msgspec.json.encode(report.to_dict()))
    assert data["passed"] is False
    assert [task["task"] for task in data["tasks"]] == ["complete_play", "like", "share"]
    assert seen[-1] == (9, 9)
    assert seen == sorted(seen)


def test_a_precision_without_tolerance_is_refused(package: ModelPackage) -> None:
    engine = EagerEngine(package, PROFILES)
    engine.precision = "int3"
    with pytest.raises(EngineError, match="precision 'int3', only for fp32, fp16, bf16"):
        validate(engine, EagerEngine(package, PROFILES))


def test_equal_seeds_give_equal_reports(package: ModelPackage) -> None:
    engine, oracle = EagerEngine(package, PROFILES), EagerEngine(package, PROFILES)
    assert validate(engine, oracle, requests=5, seed=7) == validate(engine, oracle, requests=5, seed=7)


def test_kendall_counts_the_pairs_the_oracle_tells_apart() -> None:
    truth = np.array([3, 1, 2, 2], np.float32)
    assert kendall(truth, truth) == 1.0
    assert kendall(truth, -truth) == -1.0
    assert kendall(truth, np.array([3, 1, 2, 2.5], np.float32)) == 1.0
    assert kendall(truth, np.array([1, 3, 2, 2], np.float32)) == pytest.approx(-1.0)
    assert kendall(truth, np.array([2, 1, 3, 1.5], np.float32)) == pytest.approx((4 - 1) / 5)
    assert kendall(truth[:1], truth[:1]) == 1.0


def test_top_overlap_counts_the_shared_best() -> None:
    truth = np.arange(20, dtype=np.float32)
    assert top_overlap(truth, truth) == 1.0
    assert top_overlap(truth, -truth) == 0.0
    other = truth.copy()
    other[19] = -1
    assert top_overlap(truth, other) == 0.9
    assert top_overlap(truth[:3], -truth[:3]) == 1.0


def test_nan_is_an_infinite_error_everywhere() -> None:
    truth, found = np.array([0.1, 0.2, 0.4], np.float32), np.array([0.1, np.nan, 0.4], np.float32)
    agreement = compare_task("like", [truth], [found])
    assert agreement.max_abs == agreement.max_relative == agreement.rms_relative == np.inf
    assert largest_difference(truth[:, None], found[:, None], np.ones(1)) == np.inf


def test_errors_are_told_in_units_of_the_spread() -> None:
    truth = np.array([0, 2, 0, 2], np.float32)
    agreement = compare_task("like", [truth[:2], truth[2:]], [truth[:2] + 0.5, truth[2:]])
    assert (agreement.max_abs, agreement.max_relative) == (0.5, 0.5)
    assert agreement.rms_relative == pytest.approx(0.5 / np.sqrt(2))
    assert spread(np.full(5, 3.0)) == 3.0
    assert spread(np.zeros(5)) == 1.0
