"""The benchmarks of the parts, on small models: rows are complete, and what is wrong gets no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from flame.bench import engine, variants
from flame.bench.distributions import Choice
from flame.bench.engine import EngineBench
from flame.bench.workloads import Scenario
from flame.cli.main import main
from flame.config import Config, EngineConfig
from flame.engine.build import build
from flame.engine.flops import needed_flops
from flame.engine.package import ModelPackage, load
from flame.engine.presets import preset
from flame.engine.random_weights import random_weights
from flame.errors import BackendUnavailable, ConfigError

SETTINGS = Config(engine=EngineConfig(threads=1))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenario "base" on a small model."""
    monkeypatch.setitem(variants.PRESETS, "base", "preset:tiny-climber")
    monkeypatch.setitem(variants.SCENARIOS, "base", Scenario(37, Choice((23,))))
    monkeypatch.setattr(engine, "MATRIX_SIZE", 128)


def rows_of(bench: EngineBench) -> list[dict[str, Any]]:
    return engine.run(bench, SETTINGS, 1, lambda *_: None)[0]


def test_the_engine_has_a_row_for_every_kind_and_number_of_users(small: None) -> None:
    rows = rows_of(EngineBench(["base"], [1, 2], ["eager"], rounds=3))
    assert [(row["users"], row["kind"]) for row in rows] == [
        (users, kind) for users in (1, 2) for kind in ("rank", "encode", "score")
    ]
    flops = needed_flops(preset("tiny-climber"), 37, 23)
    for row in rows:
        assert 0 < row["ms_min"] <= row["ms_median"] <= row["ms_p99"]
        assert row["share_of_peak"] == pytest.approx(row["gflops"] / row["matrix_gflops"])
        if row["kind"] == "rank":
            assert row["speedup"] == pytest.approx(1.0)
            assert row["error"] == 0.0
            assert row["gflops"] == pytest.approx(1e-6 * row["users"] * flops / row["ms_median"])
            assert row["pairs_per_s"] == pytest.approx(23e3 * row["users"] / row["ms_median"])
        if row["kind"] == "encode":
            assert row["pairs_per_s"] is row["speedup"] is row["error"] is None


def test_a_variant_that_gives_other_scores_gets_a_reason_and_no_times(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the name of another backend stands an eager engine with other weights: quick, and wrong."""
    spec = preset("tiny-climber")
    wrong = ModelPackage(spec, random_weights(spec, seed=9), None, "0" * 32)

    def built(package: ModelPackage, settings: EngineConfig, *rest: Any, **more: Any) -> Any:
        chosen = wrong if settings.backend == "openvino" else package
        return build(chosen, replace(settings, backend="eager"), *rest, **more)

    monkeypatch.setattr(variants, "build", built)
    *timed, last = rows_of(EngineBench(["base"], [1], ["eager", "openvino"], rounds=2))
    assert {row["variant"] for row in timed} == {"eager"}
    assert last["variant"] == "openvino"
    assert "validation failed" in last["reason"]
    assert not [name for name in last if name.startswith(("ms_", "gflops", "pairs"))]


def test_a_variant_that_cannot_run_here_leaves_its_reason(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(package: ModelPackage, settings: EngineConfig, *rest: Any, **more: Any) -> Any:
        if settings.backend == "compiled":
            raise BackendUnavailable("compiled needs a C++ compiler")
        return build(package, settings, *rest, **more)

    monkeypatch.setattr(variants, "build", built)
    rows = rows_of(EngineBench(["base"], [1], ["compiled"], rounds=2))
    assert rows == [{"scenario": "base", "users": 1, "variant": "compiled", "reason": "compiled needs a C++ compiler"}]


@pytest.mark.parametrize(
    ("bench", "reason"),
    [
        (EngineBench(["short"]), "there is no scenario 'short' here; there are base, long"),
        (
            EngineBench(["base"], variants=["fast"]),
            "there is no variant 'fast' here; there are fused, compiled, openvino, eager",
        ),
    ],
)
def test_unknown_names_are_refused_before_any_work(bench: EngineBench, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        engine.run(bench, SETTINGS, 1, lambda *_: pytest.fail("work has begun"))


def test_the_presets_of_the_scenarios_have_their_histories() -> None:
    for scenario, source in variants.PRESETS.items():
        limits = load(source).spec.input
        assert limits.max_history == variants.SCENARIOS[scenario].history
        assert limits.max_candidates >= max(variants.SCENARIOS[scenario].candidates.values)


def document(capsys: pytest.CaptureFixture[str], bench: str, words: list[str]) -> dict[str, Any]:
    assert main(["bench", bench, *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3, "a table stands before the document"
    content: dict[str, Any] = json.loads(lines[-1])
    assert content["bench"] == bench
    assert {"cpu", "cores", "torch", "load_average"} <= content["machine"].keys()
    return content


def test_the_command_draws_the_engine(small: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot, words = tmp_path / "engine.png", ["--scenario", "base", "--variants", "eager", "--rounds", "2"]
    content = document(capsys, "engine", [*words, "--set", "engine.threads=1", "--plot", str(plot)])
    assert content["threads"] == 1
    assert len(content["rows"]) == 3
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_feature_side_is_measured_in_every_mode(capsys: pytest.CaptureFixture[str]) -> None:
    rows = document(capsys, "features", ["--rows", "20000", "--ids", "100", "--repeats", "20"])["rows"]
    look_ups = [row for row in rows if row["what"] == "look-up"]
    assert [(row["keys"], row["rows"], row["ids"], row["row_bytes"]) for row in look_ups] == [
        ("uniform", 20000, 100, 64),
        ("zipf 1.05", 20000, 100, 64),
    ]
    assert all(row["hit_share"] > 0.99 for row in look_ups)
    gathers = {(row["scenario"], row["cache"], row["state"]): row for row in rows if row["what"] == "gather"}
    modes = [("off", "no cache"), ("sync", "warm"), ("async", "warm"), ("sync", "expired"), ("async", "expired")]
    assert list(gathers) == [(scenario, *mode) for scenario in ("base", "long") for mode in modes]
    assert all(0 < row["us_min"] <= row["us_p50"] <= row["us_p99"] for row in rows)
    for (_, cache, state), row in gathers.items():
        assert row["degraded_share"] == (1.0 if (cache, state) == ("async", "expired") else 0.0)


def test_the_path_around_the_model_is_measured_through_every_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "preset:tiny-climber", "--candidates", "20", "--history", "30", "--requests", "30"]
    content = document(capsys, "path", [*words, "--set", "engine.backend=eager"])
    assert [row["protocol"] for row in content["rows"]] == ["http", "grpc", "json"]
    for row in content["rows"]:
        assert row["requests"] == 30
        assert 0 < row["model_ms_p50"] < row["ms_p50"]
        assert row["else_ms_p50"] > 0
        assert row["cpu_ms"] > 0
        assert row["else_cpu_share"] == pytest.approx(1 - row["model_cpu_ms"] / row["cpu_ms"], rel=1e-3)
    assert content["history"] == 30


def test_a_path_that_the_model_cannot_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "preset:tiny-climber", "--candidates", "24", "--set", "engine.backend=eager"]
    assert main(["bench", "path", *words]) == 2
    assert "asked for are 37 and 24" in capsys.readouterr().err
