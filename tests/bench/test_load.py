"""`flame load` against a real server on a small model, through every protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flame.bench.distributions import Choice
from flame.bench.load.check import Check
from flame.bench.load.client import LoadError
from flame.bench.load.run import LoadPlan, LoadResult, run
from flame.bench.load.target import Target, parse_target
from flame.bench.server_process import ServerFailed, ServerProcess, serving
from flame.cli.main import main
from flame.config import Config
from flame.errors import ConfigError

MODEL = "preset:tiny-climber"
Load = Callable[..., LoadResult]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(MODEL, ["--backend", "eager", "--set", "orchestrator.max_in_flight=8"]) as process:
        yield process


@pytest.fixture
def load(server: ServerProcess) -> Load:
    """Runs a short plan against the server through one protocol."""

    def go(protocol: str = "http", **options: Any) -> LoadResult:
        port = server.grpc_port if protocol == "grpc" else server.http_port
        target = Target(protocol, server.host, port)  # type: ignore[arg-type]
        short = {"duration_s": 0.6, "warm_up_s": 0.2, "distinct": 40, "users": 20, "step_s": 0.3}
        return run(LoadPlan(target, **(short | options)), lambda *_: None)

    return go


@pytest.mark.parametrize("protocol", ["http", "json", "grpc"])
def test_answers_are_those_of_the_oracle(load: Load, protocol: str) -> None:
    result = load(protocol, rate=60.0, candidates=Choice((1, 9, 23)), check=Check(MODEL, Config()), deadline_ms=5000.0)
    (row,) = result.rows
    assert result.facts["check"]["requests"] == 8
    assert result.facts["check"]["max_error"] <= 1e-4
    assert result.facts["model"] == "tiny-climber"
    assert result.facts["backend"] == "eager"
    assert row["errors"] == {}
    assert 10 <= row["requests"] <= 80
    assert row["goodput"] == pytest.approx(row["offered_rate"])
    assert 1 <= row["pairs_per_s"] / row["achieved_rate"] <= 23
    assert {"features", "queue", "compute"} <= row["stages_us"].keys()
    assert row["server_mean_us"]["compute_infer"] > 0
    stages = row["stages_us"]
    assert stages["compute"]["p50"] + stages["features"]["p50"] < 1e3 * row["ms_p99"], "the stages are part of the time"


@pytest.mark.parametrize("protocol", ["http", "json", "grpc"])
def test_a_closed_loop_is_bounded_in_count(load: Load, protocol: str) -> None:
    (row,) = load(protocol, concurrency=3, most_requests=30, duration_s=60.0, warm_up_s=0.001).rows
    assert row["requests"] <= 30
    assert row["seconds"] < 30
    assert row["failed"] == 0


def test_another_model_is_found_out(load: Load) -> None:
    with pytest.raises(LoadError, match="answers are wrong"):
        load(rate=10.0, check=Check("preset:tiny-climber-own-wiring", Config()))


@pytest.mark.parametrize("protocol", ["http", "json", "grpc"])
def test_a_model_that_is_not_there_is_named(load: Load, protocol: str) -> None:
    with pytest.raises(LoadError, match="the server has the models tiny-climber; name one"):
        load(protocol, rate=10.0, model="other")


@pytest.mark.parametrize("protocol", ["http", "json", "grpc"])
def test_deadlines_that_cannot_be_met_are_an_error_by_its_kind(load: Load, protocol: str) -> None:
    result = load(protocol, rate=50.0, deadline_ms=0.001)
    (row,) = result.rows
    assert row["errors"] == {"deadline_exceeded": row["requests"]}
    assert row["goodput"] == 0
    assert not result.answered


@pytest.mark.parametrize("protocol", ["http", "json", "grpc"])
def test_refusals_are_told_from_answers(load: Load, protocol: str) -> None:
    """Eight requests may be in flight; forty callers are more than that."""
    (row,) = load(protocol, concurrency=40).rows
    assert row["errors"].keys() == {"queue_full"}
    assert 0 < row["failed"] < row["requests"]
    assert row["ms_p50"] is not None


def test_user_ids_alone_are_enough(load: Load) -> None:
    (row,) = load(rate=30.0, history="store").rows
    assert row["failed"] == 0


def test_the_search_ends_with_the_rate_it_confirmed(load: Load) -> None:
    result = load(search_p99_ms=1000.0, concurrency=2)
    phases = [row["phase"] for row in result.rows]
    assert phases[0] == "capacity"
    assert {"bracket", "confirm"} <= set(phases)
    last = result.rows[-1]
    assert last["phase"] == "highest rate held"
    assert last["held"] is True
    assert last["ms_p99"] <= 1000
    assert result.facts["search_p99_ms"] == 1000.0


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"candidates": Choice((24,))}, "limit of 23"), ({"history": Choice((38,))}, "limit of 37"), ({"items": 5}, "5")],
)
def test_what_the_model_cannot_take_is_not_sent(load: Load, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(rate=10.0, **options)


def test_the_command_ends_with_the_document_and_draws_the_search(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plot, output = tmp_path / "rates.png", tmp_path / "rates.json"
    words = ["load", server.grpc, "--search-p99", "1000", "--duration", "0.5", "--step", "0.3", "--warm-up", "0.1"]
    words += ["--distinct", "20", "--users", "5", "--plot", str(plot), "--output", str(output)]
    assert main(words) == 0
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert content["bench"] == "load"
    assert content["rows"] == json.loads(output.read_text())["rows"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_command_fails_when_nothing_was_answered(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["load", server.http, "--rate", "20", "--duration", "0.5", "--warm-up", "0.1", "--deadline-ms", "0.001"]
    assert main([*words, "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["rows"][0]["goodput"] == 0


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there_is_said(scheme: str) -> None:
    with pytest.raises(LoadError, match="is the server running"):
        run(LoadPlan(parse_target(f"{scheme}://127.0.0.1:9"), rate=1.0), lambda *_: None)


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(ServerFailed, match="there is no preset 'tiny'"), serving("preset:tiny"):
        pytest.fail("it cannot start")
