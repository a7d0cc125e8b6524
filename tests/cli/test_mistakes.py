"""What is wrong is said in one line on standard error, and the exit code says whose mistake it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Flame = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "required: COMMAND"),
        (["sreve"], "invalid choice: 'sreve'"),
        (["serve"], "required: MODEL_DIR"),
        (["serve", "x", "--http-port", "99999"], "not a port between 0 and 65535"),
        (["serve", "x", "--htp-port", "1"], "unrecognized arguments: --htp-port"),
        (["serve", "x", "--http", "1"], "unrecognized arguments: --http"),
        (["serve", "x", "--set", "cache=1"], "not SECTION.FIELD=VALUE"),
        (["rank", "x", "--user", "1", "--candidates", "1,x"], "not a list of ids"),
        (["rank", "x", "--user", "one", "--candidates", "1"], "invalid int value"),
        (["load", "http://h:1"], "--rate --concurrency --search-p99 is required"),
        (["load", "http://h:1", "--rate", "1", "--concurrency", "1"], "not allowed with"),
        (["load", "http://h:1", "--rate", "0"], "not a number above 0"),
        (["load", "http://h:1", "--rate", "nan"], "not a number above 0"),
        (["load", "http://h:1", "--concurrency", "0"], "not a whole number of at least 1"),
        (["bench"], "required: BENCHMARK"),
        (["bench", "engine", "--users", "1,0"], "not a whole number"),
        (["bench", "engine", "--variants", "eager,,compiled"], "not a list such as"),
        (["features", "info"], "required: DIR"),
    ],
)
def test_a_wrong_command_line_exits_with_2(flame_here: Flame, words: list[str], reason: str) -> None:
    done = flame_here(*words)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--set", "server.htp_port=1"], "there is no setting 'server.htp_port'; server has host, http_port"),
        (["--set", "sever.http_port=1"], "there is no setting 'sever.http_port'; sections are features, engine"),
        (["--set", "features.cache=on"], "features.cache"),
        (["--set", "orchestrator.executors=0"], "orchestrator.executors"),
        (["--config", "absent.toml"], "configuration file absent.toml does not exist"),
        (["--trace", "."], "server.trace: . is no file; name one that may be replaced"),
        (["--trace", "absent/trace.json"], "server.trace: cannot write absent/trace.json: No such file or directory"),
        (["--set", "orchestrator.timeline_entries=-1"], "orchestrator.timeline_entries"),
    ],
)
def test_a_wrong_setting_exits_with_2(flame_here: Flame, words: list[str], reason: str) -> None:
    done = flame_here("serve", "preset:tiny-climber", *words)
    assert done.returncode == 2
    assert reason in done.stderr


def test_a_wrong_setting_in_the_environment_is_named(flame_here: Flame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_SERVER_HTTP_PORT", "many")
    done = flame_here("serve", "preset:tiny-climber")
    assert done.returncode == 2
    assert "environment" in done.stderr
    assert "http_port" in done.stderr


def test_a_broken_file_is_named(flame_here: Flame, tmp_path: Path) -> None:
    file = tmp_path / "flame.toml"
    file.write_text("server = ]")
    done = flame_here("serve", "preset:tiny-climber", "--config", str(file))
    assert done.returncode == 2
    assert "flame.toml is not TOML" in done.stderr


@pytest.mark.parametrize(
    "url", ["http://host", "https://host:1", "host:8000", "grpc://host:1/path", "http://host:99999", "http://host:1/v2"]
)
def test_an_address_that_cannot_be_loaded_exits_with_2(flame_here: Flame, url: str) -> None:
    done = flame_here("load", url, "--rate", "1")
    assert done.returncode == 2
    assert "is no address to load: write http://HOST:PORT" in done.stderr


@pytest.mark.parametrize(
    ("option", "reason"),
    [(["--candidates", "many"], "'many' is no distribution"), (["--history", "-1"], "'-1' is no distribution")],
)
def test_a_bad_distribution_exits_with_2(flame_here: Flame, option: list[str], reason: str) -> None:
    done = flame_here("load", "http://host:1", "--rate", "1", "=".join(option))
    assert done.returncode == 2
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read"),
        ("not json", "is not a history in JSON"),
        ('{"items": [1], "actions": [0]}', "has no list 'timestamps'"),
        ('{"items": ["a"], "actions": [0], "timestamps": [1]}', "is not a history in JSON"),
        (f'{{"items": [{2**70}], "actions": [0], "timestamps": [1]}}', "is not a history in JSON"),
    ],
    ids=["absent", "no json", "a list missing", "no numbers", "too large"],
)
def test_a_bad_history_file_exits_with_2(flame_here: Flame, tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "history.json"
    if content is not None:
        file.write_text(content)
    words = ["rank", "preset:tiny-climber", "--user", "1", "--candidates", "1", "--history-file", str(file)]
    done = flame_here(*words)
    assert done.returncode == 2
    assert reason in done.stderr


def test_a_missing_model_exits_with_1_and_no_traceback(run_flame: Flame) -> None:
    done = run_flame("rank", "absent", "--user", "1", "--candidates", "1,2")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "flame rank: 'absent' is neither a model folder nor preset:NAME\n"


def test_debug_shows_the_traceback(run_flame: Flame) -> None:
    done = run_flame("rank", "preset:tiny-climbr", "--user", "1", "--candidates", "1,2", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "did you mean 'tiny-climber'?" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--candidates", ",".join(["1"] * 24)], 1, "24 candidates"),
        (["--candidates", "1", "--scenario", "3"], 1, "scenario"),
        (["--candidates", "1", "--backend", "fast"], 2, "engine.backend is 'fast'; backends are auto,"),
        (["--candidates", "1", "--store-path", "absent"], 2, "features.path: 'absent' is not a folder"),
    ],
)
def test_a_request_that_cannot_be_ranked_says_why(flame_here: Flame, words: list[str], code: int, reason: str) -> None:
    usual = ["rank", "preset:tiny-climber", "--user", "1", "--set", "engine.backend=eager"]
    done = flame_here(*usual, *words)
    assert done.returncode == code
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
