"""The OpenVINO engine against the oracle; skipped where the extra is not installed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")

from flame.engine.backends.base import Engine
from flame.engine.backends.eager import EagerEngine
from flame.engine.backends.openvino_backend import OpenVinoBackend
from flame.engine.backends.registry import BuildTarget
from flame.engine.package import ModelPackage
from flame.engine.presets import preset, random_weights
from flame.engine.probe import Packed, Probe
from flame.engine.spec import Profile
from flame.errors import ExecutionError

MakePacked = Callable[..., tuple[Profile, Packed]]
COUNTS, SHARES = [23, 7], [1.0, 0.4]


@pytest.fixture(scope="module", params=["tiny-climber-bias", "tiny-hstu"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, EagerEngine]:
    """The engine with one profile, and the oracle."""
    spec = preset(request.param)
    package = ModelPackage(spec, random_weights(spec, seed=1), None, request.param)
    profiles = [Profile(2, spec.input.max_history, spec.input.max_candidates)]
    folder = tmp_path_factory.mktemp("openvino")
    backend = OpenVinoBackend()
    target = BuildTarget("cpu", "fp32", 1)
    backend.prepare(package, profiles, folder, target)
    return backend.open(package, profiles, folder, target), EagerEngine(package, profiles)


def test_scores_agree_with_the_oracle(engines: tuple[Engine, EagerEngine], make_packed: MakePacked) -> None:
    engine, oracle = engines
    for seed in range(3):
        case = make_packed(engine.spec, COUNTS, SHARES, seed)
        expected = Probe(oracle).rank(*case)
        for found in (Probe(engine).rank(*case), Probe(engine).encode_and_score(*case)):
            for mine, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def test_fewer_users_than_slots_and_a_used_state(engines: tuple[Engine, EagerEngine], make_packed: MakePacked) -> None:
    engine, oracle = engines
    states = [engine.state(engine.spec.input.max_history) for _ in range(2)]
    buffers = engine.buffers(engine.profiles[0])
    for users, share in ((2, 1.0), (1, 0.2)):
        _, packed = make_packed(engine.spec, COUNTS, share)
        expected = Probe(oracle).rank(engine.profiles[0], packed)
        buffers.words[:] = packed.words
        engine.encode(buffers, states[:users])
        engine.score(buffers, states[:users])
        for user in range(users):
            np.testing.assert_allclose(buffers.scores[user, : COUNTS[user]], expected[user], rtol=0, atol=1e-5)


def test_what_it_has_no_graph_for_is_refused(engines: tuple[Engine, EagerEngine]) -> None:
    engine, oracle = engines
    with pytest.raises(ExecutionError, match=r"no graph for profile 1x2\+3"):
        engine.buffers(Profile(1, 2, 3))
    with pytest.raises(ExecutionError, match="history of 2 events"):
        engine.state(2)
    buffers = engine.buffers(engine.profiles[0])
    with pytest.raises(ExecutionError, match="nothing was encoded"):
        engine.score(buffers, [engine.state(engine.spec.input.max_history)])
    with pytest.raises(ExecutionError, match="1 to 2 users, not 3"):
        engine.rank(buffers, 3)
    with pytest.raises(ExecutionError, match="another engine"):
        engine.encode(buffers, [oracle.state(1)])
