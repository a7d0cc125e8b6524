"""The oracle as an engine: buffers, states, activations, and what it refuses."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from flame.engine.backends.eager import EagerEngine
from flame.engine.inputs import unpack
from flame.engine.package import load
from flame.engine.sampling import random_words
from flame.engine.spec import Profile, ProfileCost
from flame.errors import BackendUnavailable, ExecutionError

PROFILE = Profile(3, 20, 6)
COUNTS = [6, 1, 4]


@pytest.fixture
def engine(any_spec) -> EagerEngine:
    package = load("preset:tiny-hstu" if any_spec.hstu else "preset:tiny-climber-bias")
    return EagerEngine(package, [PROFILE])


def fill(engine: EagerEngine, buffers, counts=COUNTS) -> torch.Tensor:
    """Random requests in `buffers`; the logits they should get."""
    spec = engine.spec
    lengths = [tuple(sequence.capacity(history) for sequence in spec.input.sequences) for history in (20, 0, 3)]
    rng = np.random.default_rng(5)
    buffers.words[:] = random_words(spec, buffers.layout, lengths[: len(counts)], counts, rng)
    return engine._model.rank(unpack(torch.from_numpy(buffers.words.copy()), buffers.layout))


def test_rank_writes_activated_scores_of_the_first_users_only(engine) -> None:
    buffers = engine.buffers(PROFILE)
    logits = fill(engine, buffers)
    buffers.scores[:] = -7
    engine.rank(buffers, 2)
    np.testing.assert_allclose(buffers.scores[0], torch.sigmoid(logits[0]), rtol=1e-4)
    np.testing.assert_allclose(buffers.scores[1, :1], torch.sigmoid(logits[1, :1]), rtol=1e-4)
    assert (buffers.scores[2] == -7).all()


def test_an_identity_task_keeps_its_logits() -> None:
    package = load("preset:tiny-climber")
    tasks = (package.spec.tasks[0], msgspec.structs.replace(package.spec.tasks[1], activation="identity"))
    spec = msgspec.structs.replace(package.spec, tasks=(*tasks, package.spec.tasks[2]))
    engine = EagerEngine(type(package)(spec, package.weights, None, "changed"), [PROFILE])
    buffers = engine.buffers(PROFILE)
    logits = fill(engine, buffers)
    engine.rank(buffers, 3)
    np.testing.assert_allclose(buffers.scores[0, :, 1], logits[0, :, 1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(buffers.scores[0, :, 2], torch.sigmoid(logits[0, :, 2]), rtol=1e-4)


def test_host_and_device_share_memory_on_a_cpu(engine) -> None:
    buffers = engine.buffers(PROFILE)
    assert buffers.words.shape == (buffers.layout.words,)
    assert buffers.scores.shape == (3, 6, 3)
    buffers.words[7] = 12345
    assert buffers.device_words[7] == 12345
    buffers.device_scores[1, 2, 0] = 0.5
    assert buffers.scores[1, 2, 0] == 0.5


def test_a_state_outlives_its_buffers_and_serves_other_shapes(engine) -> None:
    buffers = engine.buffers(PROFILE)
    logits = fill(engine, buffers)
    states = [engine.state(37) for _ in range(3)]
    engine.encode(buffers, states)
    words = buffers.words.copy()
    buffers.words[:] = -1
    small = engine.buffers(Profile(1, 1, 6))
    source, target = buffers.layout.views(words), small.layout.views(small.words)
    for user, count in enumerate(COUNTS):
        target.header[0] = source.header[user]
        target.candidates[0] = source.candidates[user]
        engine.score(small, [states[user]])
        np.testing.assert_allclose(small.scores[0, :count], torch.sigmoid(logits[user, :count]), rtol=1e-4)


def test_states_of_different_profiles_are_scored_together(engine) -> None:
    wide, narrow = engine.buffers(PROFILE), engine.buffers(Profile(1, 3, 6))
    logits = fill(engine, wide)
    states = [engine.state(20) for _ in range(3)]
    engine.encode(wide, states)
    source, target = wide.layout.views(wide.words), narrow.layout.views(narrow.words)
    target.header[0] = source.header[2]
    target.events[0] = source.events[2, :, : narrow.layout.events]
    states[2] = engine.state(3)
    engine.encode(narrow, [states[2]])
    engine.score(wide, states)
    for user, count in enumerate(COUNTS):
        np.testing.assert_allclose(wide.scores[user, :count], torch.sigmoid(logits[user, :count]), rtol=1e-4)


def test_a_states_size_is_known_before_it_is_used(engine) -> None:
    states = [engine.state(20)]
    promised = states[0].nbytes
    buffers = engine.buffers(Profile(1, 20, 6))
    fill(engine, buffers, [6])
    engine.encode(buffers, states)
    assert promised == sum(part.numel() * part.element_size() for part in states[0].tensors)
    assert engine.state(0).nbytes < promised < engine.state(37).nbytes


def test_what_cannot_be_launched_is_refused(engine) -> None:
    buffers = engine.buffers(PROFILE)
    with pytest.raises(ExecutionError, match=r"3x20\+6 takes 1 to 3 users, not 4"):
        engine.rank(buffers, 4)
    with pytest.raises(ExecutionError, match="not 0"):
        engine.rank(buffers, 0)
    with pytest.raises(ExecutionError, match="nothing was encoded"):
        engine.score(buffers, [engine.state(20)])
    with pytest.raises(ExecutionError, match=r"a state for 3 events cannot take profile 3x20\+6"):
        engine.encode(buffers, [engine.state(3)])
    with pytest.raises(ExecutionError, match="made by another engine"):
        engine.score(buffers, [type("Foreign", (), {"nbytes": 1})()])
    fill(engine, buffers)
    buffers.layout.views(buffers.words).candidates[0, 0, 0] = 10**6
    with pytest.raises(ExecutionError, match="the launch failed: IndexError"):
        engine.rank(buffers, 1)


def test_it_says_what_it_is(engine) -> None:
    assert (engine.backend, engine.precision, engine.device, engine.graph_safe) == ("eager", "fp32", "cpu", False)
    assert engine.profiles == (PROFILE,)
    assert engine.costs == {}
    costs = {PROFILE: ProfileCost(1.0, 0.5, 0.7)}
    assert EagerEngine(load("preset:tiny-hstu"), [PROFILE], costs=costs).costs == costs


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_gpu_is_told() -> None:
    with pytest.raises(BackendUnavailable, match="'cuda', but PyTorch finds no CUDA device"):
        EagerEngine(load("preset:tiny-hstu"), [PROFILE], device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_gpu_gives_the_same_scores_as_the_cpu(any_spec) -> None:
    package = load("preset:tiny-hstu" if any_spec.hstu else "preset:tiny-climber-bias")
    scores = []
    for device in ("cpu", "cuda"):
        engine = EagerEngine(package, [PROFILE], device=device)
        buffers = engine.buffers(PROFILE)
        fill(EagerEngine(package, [PROFILE]), buffers)
        engine.rank(buffers, 3)
        ranked = buffers.scores.copy()
        states = [engine.state(20) for _ in range(3)]
        engine.encode(buffers, states)
        engine.score(buffers, states)
        scores += [ranked, buffers.scores.copy()]
    for user, count in enumerate(COUNTS):
        for other in scores[1:]:
            np.testing.assert_allclose(other[user, :count], scores[0][user, :count], rtol=1e-4, atol=1e-6)
