"""The compiled engine against the oracle, and against itself in every arrangement, bit for bit."""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flame.engine.backends.base import Engine
from flame.engine.backends.compiled import CompiledBuffers, CompiledEngine
from flame.engine.backends.compiled_model import constants
from flame.engine.backends.eager import EagerEngine
from flame.engine.kernels.cpu.compiler import compile_library
from flame.engine.package import ModelPackage
from flame.engine.presets import preset, random_weights
from flame.engine.probe import Packed, Place, Probe, repack
from flame.engine.sampling import NAN_WORD
from flame.engine.spec import ModelSpec, Profile, Task
from flame.engine.validate import validate
from flame.errors import ExecutionError
from flame.layout import CANDIDATES, EVENT_ACTION, LENGTHS, SCENARIO
from flame.records import Scores
from flame.schema import ItemTable, SequenceSpec

MakeEngine = Callable[..., CompiledEngine]
MakePacked = Callable[..., tuple[Profile, Packed]]
MakePackage = Callable[[ModelSpec], ModelPackage]
Oracle = Callable[[ModelSpec], EagerEngine]

COUNTS = [1, 16, 150, 63, 65]
SHARES = [0.0, 1.0, 0.51, 0.007, 0.43]
"""Of 300 events: none, all, some, one or two (one in each half), and some that fill no tile."""


def rank(engine: Engine, profile: Profile, packed: Packed) -> list[Scores]:
    return Probe(engine).rank(profile, packed)


def assert_same(found: list[Scores], expected: list[Scores]) -> None:
    """Bit for bit."""
    for user, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(mine, theirs, err_msg=f"user {user}")


def test_scores_agree_with_the_oracle(
    wide_spec: ModelSpec, make_engine: MakeEngine, oracle_of: Oracle, make_packed: MakePacked
) -> None:
    profile, packed = make_packed(wide_spec, COUNTS, SHARES)
    expected = rank(oracle_of(wide_spec), profile, packed)
    found = rank(make_engine(wide_spec), profile, packed)
    for user, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5, err_msg=f"user {user}")
    spread = np.concatenate(expected).std(0)
    assert (spread > 1e-3).all(), f"scores that do not differ prove nothing: {spread}"


def test_validation_finds_no_difference_at_all(
    wide_spec: ModelSpec, make_engine: MakeEngine, oracle_of: Oracle
) -> None:
    engine = make_engine(wide_spec)
    engine.profiles = (Profile(2, 300, 150), Profile(3, 70, 33))
    report = validate(engine, oracle_of(wide_spec), requests=4)
    assert report.passed, report.render()
    assert report.tolerance.isolation == max(result.worst for result in report.isolation) == 0


def test_a_score_is_the_same_whatever_else_is_in_the_launch(
    wide_spec: ModelSpec, make_engine: MakeEngine, make_packed: MakePacked
) -> None:
    engine = make_engine(wide_spec)
    profile, packed = make_packed(wide_spec, COUNTS, SHARES)
    together = rank(engine, profile, packed)
    rng = np.random.default_rng(1)
    for user, count in enumerate(COUNTS):
        order = rng.permutation(count)
        for part in np.array_split(order, min(3, count)):
            alone = Profile(1, profile.history, len(part))
            places = [Place(user, [int(place) for place in part])]
            found = rank(engine, alone, repack(packed, wide_spec.layout(alone), places))
            assert_same(found, [together[user][part]])


def test_encode_and_score_give_the_bits_of_rank(
    wide_spec: ModelSpec, make_engine: MakeEngine, make_packed: MakePacked
) -> None:
    engine = make_engine(wide_spec)
    profile, packed = make_packed(wide_spec, COUNTS, SHARES)
    assert_same(Probe(engine).encode_and_score(profile, packed), rank(engine, profile, packed))


def test_threads_change_no_bit(wide_spec: ModelSpec, make_engine: MakeEngine, make_packed: MakePacked) -> None:
    profile, packed = make_packed(wide_spec, COUNTS, SHARES)
    expected = rank(make_engine(wide_spec, threads=1), profile, packed)
    for threads in (2, 3, 5):
        assert_same(rank(make_engine(wide_spec, threads=threads), profile, packed), expected)


def test_a_launch_reads_nothing_it_has_not_written(
    wide_spec: ModelSpec, make_engine: MakeEngine, make_packed: MakePacked
) -> None:
    engine = make_engine(wide_spec)
    profile, packed = make_packed(wide_spec, COUNTS, SHARES)
    buffers = engine.buffers(profile)
    buffers.words[:] = packed.words
    results = []
    for _ in range(2):
        buffers.workspace.poison()
        buffers.scores[:] = np.nan
        engine.rank(buffers, packed.users)
        results.append([buffers.scores[user, :count].copy() for user, count in enumerate(COUNTS)])
        assert all(np.isnan(buffers.scores[user, count:]).all() for user, count in enumerate(COUNTS))
    assert_same(results[0], results[1])
    assert np.isfinite(np.concatenate(results[0])).all()


def test_a_used_state_is_written_anew(wide_spec: ModelSpec, make_engine: MakeEngine, make_packed: MakePacked) -> None:
    """Long history first, short one after it, in the same state and buffers."""
    engine = make_engine(wide_spec)
    state = engine.state(wide_spec.input.max_history)
    for share in (1.0, 0.2, 0.0):
        profile, packed = make_packed(wide_spec, [40], share)
        buffers = engine.buffers(profile)
        buffers.words[:] = packed.words
        engine.encode(buffers, [state])
        engine.score(buffers, [state])
        assert_same([buffers.scores[0, :40].copy()], rank(engine, profile, packed))


def test_launches_at_the_same_time_do_not_meet(
    wide_spec: ModelSpec, make_engine: MakeEngine, make_packed: MakePacked
) -> None:
    engine = make_engine(wide_spec)
    cases = [make_packed(wide_spec, [20 + seed, 3], 0.3 + 0.1 * seed, seed) for seed in range(4)]
    expected = [rank(engine, *case) for case in cases]
    with ThreadPoolExecutor(len(cases)) as pool:
        found = pool.map(lambda case: [rank(engine, *case) for _ in range(5)], cases)
        for results, wanted in zip(found, expected, strict=True):
            for result in results:
                assert_same(result, wanted)


def test_scores_of_attention_beyond_the_first_guess_are_right(
    climber_spec: ModelSpec, make_engine: MakeEngine, make_packed: MakePacked
) -> None:
    """A temperature so low that attention is all or nothing: softmax must follow scores that outgrow their start."""
    weights = random_weights(climber_spec, seed=1)
    for name in weights:
        if name.endswith("log_temperature") and not name.startswith("fusion"):
            weights[name] = weights[name] - 6
    package = ModelPackage(climber_spec, weights, None, "cold")
    profile, packed = make_packed(climber_spec, [23, 5], [1.0, 0.6])
    found = rank(make_engine(climber_spec, package=package), profile, packed)
    expected = rank(EagerEngine(package, ()), profile, packed)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-3)
    alone = Profile(1, profile.history, 5)
    places = [Place(0, [7, 3, 22, 0, 1])]
    lone = rank(make_engine(climber_spec, package=package), alone, repack(packed, climber_spec.layout(alone), places))
    assert_same(lone, [found[0][places[0].candidates]])


def test_sizes_that_fit_nothing(make_engine: MakeEngine, oracle_of: Oracle, make_packed: MakePacked) -> None:
    """One block, heads of 4, prime sizes, embeddings from the host, no bounds on one task's score."""
    tiny = preset("tiny-climber")
    sizes = msgspec.structs.replace(
        tiny.climber, dim=20, heads=5, ffn=101, layers=1, experts=1, expert_hidden=3, expert_dim=1, tower_hidden=1
    )
    limits = msgspec.structs.replace(
        tiny.input,
        item_id=ItemTable(vocabulary=50, dim=7, lookup="host"),
        sequences=(SequenceSpec("all"),),
        max_history=70,
        item=(),
        user=(),
    )
    tasks = (Task("like"), Task("minutes", activation="identity"))
    spec = msgspec.structs.replace(tiny, climber=sizes, input=limits, tasks=tasks)
    profile, packed = make_packed(spec, [23, 1], [1.0, 0.3])
    expected = rank(oracle_of(spec), profile, packed)
    for mine, theirs in zip(rank(make_engine(spec), profile, packed), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert max(scores[:, 1].max() for scores in expected) > 1 or min(scores[:, 1].min() for scores in expected) < 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flame-base", "flame-long"])
def test_the_papers_sizes_agree_with_the_oracle(
    name: str, make_engine: MakeEngine, oracle_of: Oracle, make_packed: MakePacked
) -> None:
    spec = preset(name)
    limits = msgspec.structs.replace(spec.input, max_candidates=133)
    spec = msgspec.structs.replace(spec, input=limits)
    profile, packed = make_packed(spec, [133])
    expected = rank(oracle_of(spec), profile, packed)[0]
    np.testing.assert_allclose(rank(make_engine(spec), profile, packed)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
def test_processors_with_narrower_vectors(
    tmp_path: Path, make_package: MakePackage, oracle_of: Oracle, make_packed: MakePacked
) -> None:
    spec = preset("tiny-climber-bias")
    compile_library("climber.cpp", constants(spec), tmp_path / "kernels.so", ["-mno-avx512f"])
    profile, packed = make_packed(spec, [23, 9, 1], [1.0, 0.5, 0.0])
    found = rank(CompiledEngine(make_package(spec), (), tmp_path / "kernels.so", 2), profile, packed)
    for mine, theirs in zip(found, rank(oracle_of(spec), profile, packed), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def launched(make_engine: MakeEngine, make_packed: MakePacked) -> tuple[CompiledEngine, CompiledBuffers, Packed]:
    """An engine with buffers that hold two good users."""
    spec = preset("tiny-climber-bias")
    engine = make_engine(spec)
    profile, packed = make_packed(spec, [5, 23])
    buffers = engine.buffers(profile)
    buffers.words[:] = packed.words
    return engine, buffers, packed


@pytest.mark.parametrize("users", [0, 3])
def test_a_launch_takes_as_many_users_as_it_has_slots(
    users: int, launched: tuple[CompiledEngine, CompiledBuffers, Packed]
) -> None:
    engine, buffers, _ = launched
    with pytest.raises(ExecutionError, match=f"1 to 2 users, not {users}"):
        engine.rank(buffers, users)


@pytest.mark.parametrize(
    ("section", "column", "value", "message"),
    [
        ("header", SCENARIO, 3, "outside its table"),
        ("header", SCENARIO, -1, "outside its table"),
        ("header", CANDIDATES, 24, "outside the buffer's profile"),
        ("header", LENGTHS, 999, "outside the buffer's profile"),
        ("events", EVENT_ACTION, 5, "outside its table"),
        ("events", EVENT_ACTION, NAN_WORD, "outside its table"),
        ("candidates", 0, 1000, "outside its table"),
        ("candidates", 1, -7, "outside its table"),
    ],
)
def test_impossible_inputs_are_refused_and_the_next_launch_is_right(
    section: str, column: int, value: int, message: str, launched: tuple[CompiledEngine, CompiledBuffers, Packed]
) -> None:
    engine, buffers, packed = launched
    engine.rank(buffers, 2)
    good = buffers.scores.copy()
    records = getattr(buffers.layout.views(buffers.words), section)
    records.reshape(-1, records.shape[-1])[0, column] = value
    with pytest.raises(ExecutionError, match=message):
        engine.rank(buffers, 2)
    buffers.words[:] = packed.words
    engine.rank(buffers, 2)
    np.testing.assert_array_equal(buffers.scores, good)


def test_a_state_must_be_encoded_large_enough_and_of_this_engine(
    launched: tuple[CompiledEngine, CompiledBuffers, Packed], oracle_of: Oracle
) -> None:
    engine, buffers, _ = launched
    history = engine.spec.input.max_history
    with pytest.raises(ExecutionError, match="nothing was encoded"):
        engine.score(buffers, [engine.state(history)])
    with pytest.raises(ExecutionError, match="less room"):
        engine.encode(buffers, [engine.state(1)])
    oracle = oracle_of(engine.spec)
    with pytest.raises(ExecutionError, match="another engine"):
        engine.score(buffers, [oracle.state(history)])
    with pytest.raises(ExecutionError, match="another engine"):
        engine.rank(oracle.buffers(buffers.profile), 1)


def test_a_state_longer_than_the_profile_is_refused_where_bias_needs_room(
    launched: tuple[CompiledEngine, CompiledBuffers, Packed], make_packed: MakePacked
) -> None:
    engine, buffers, _ = launched
    state = engine.state(engine.spec.input.max_history)
    engine.encode(buffers, [state])
    small = engine.buffers(Profile(1, 3, 23))
    layout = engine.spec.layout(small.profile)
    header = buffers.layout.views(buffers.words).header[0]
    layout.views(small.words).header[0] = header
    with pytest.raises(ExecutionError, match="more events than"):
        engine.score(small, [state])


def test_state_sizes_follow_the_history(make_engine: MakeEngine) -> None:
    spec = preset("tiny-hstu")
    engine = make_engine(spec)
    row = 4 * spec.hstu.layers * spec.hstu.heads * (spec.hstu.attention_dim + spec.hstu.linear_dim)
    for history in (1, 16, 37):
        rounded_up = history + 15
        assert history * row <= engine.state(history).nbytes <= rounded_up * (row + 4) + 64


def test_an_engine_closes_its_workspaces(make_engine: MakeEngine, make_packed: MakePacked) -> None:
    spec = preset("tiny-hstu")
    engine = make_engine(spec)
    profile, _ = make_packed(spec, [1])
    buffers = engine.buffers(profile)
    engine.close()
    engine.close()
    with pytest.raises(AssertionError, match="closed"):
        engine.rank(buffers, 1)
