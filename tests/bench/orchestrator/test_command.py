"""`flame bench orchestrator` on a tiny model: every row, every column, the marks and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flame.bench.orchestrator.rows import COLUMNS
from flame.cli.main import main

WORDS = ["bench", "orchestrator", "--device", "cpu", "--model", "preset:tiny-climber", "--history", "37"]
WORDS += ["--set", "engine.backend=eager", "--set", "engine.validate=off", "--set", "orchestrator.users=1,2"]
MARKS = {"throughput over implicit", "throughput over largest-first", "share of the engine alone"}
MARKS |= {"busy share at saturation", "padding waste at saturation", "planner, us per request"}
POLICIES = ["implicit", "largest-first", "cost"]


@pytest.mark.slow
def test_every_row_and_column_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, picture = tmp_path / "orchestrator.json", tmp_path / "orchestrator.png"
    words = ["--candidates", "6,12", "--quick", "--output", str(file), "--plot", str(picture)]
    assert main([*WORDS, *words]) == 0
    out = capsys.readouterr().out
    content: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert content == json.loads(file.read_text())
    assert "marks" in out
    assert list(content["costs_ms"]) == [f"{users}x37+{size}" for users in (1, 2) for size in (6, 12)]
    assert (content["model"], content["backend"], content["device"]) == ("preset:tiny-climber", "eager", "cpu")
    rows = content["rows"]
    assert all(list(row)[: len(COLUMNS)] == list(COLUMNS) for row in rows)
    assert [(row["what"], row["policy"]) for row in rows] == [
        ("engine alone", ""),
        *[(what, policy) for what in ("capacity", "open loop", "open loop") for policy in POLICIES],
        *[(what, "cost") for what in ("overload", "zipf", "reuse", "reuse")],
        *[("overhead", policy) for policy in POLICIES],
        *[("planner", policy) for policy in POLICIES],
    ]
    for row in rows:
        check(row)
    assert list(content["launches"]) == POLICIES
    assert {mark["mark"] for mark in content["marks"]} >= MARKS
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again.png"
    assert main(["bench", "plot", str(file), str(again)]) == 0
    assert again.read_bytes().startswith(b"\x89PNG")


def check(row: dict[str, Any]) -> None:
    """What must hold of a row however busy the machine is."""
    what, policy = row["what"], row["policy"]
    if what in ("capacity", "zipf", "overhead"):
        assert row["pairs_per_s"] > 0
        assert 0 < row["ms_p50"] <= row["ms_p99"] <= row["ms_p999"] <= row["ms_max"]
        assert 0 < row["busy_share"] <= 1
        assert row["failed"] == 0
    if what in ("capacity", "overhead") and policy != "cost":
        assert row["padding_waste"] == pytest.approx({"implicit": 0.25, "largest-first": 0.0}[policy], abs=0.2)
    if what in ("zipf", "reuse"):
        assert 0 <= row["reuse_share"] <= 1, "whether it pays is for the costs of this machine to say"
    else:
        assert not row["reuse_share"], "nobody comes twice unless that is asked for"
    if what == "reuse":
        assert row["second_over_first"] == pytest.approx(row["second_device_ms"] / row["first_device_ms"], rel=1e-4)
        assert {"engine_rank_ms", "engine_score_ms", "first_ms_p50", "second_ms_p50"} <= row.keys()
    if what == "overload":
        assert row["deadline_ms"] == 100.0
        assert {"goodput_of_capacity", "accepted_in_time_share", "refusal_ms_p99", "resident_growth_mib"} <= row.keys()
        assert row["refused"] <= row["failed"] <= row["requests"]
    if what in ("overhead", "planner"):
        assert row["us_per_request"] > 0
    if what == "overhead":
        assert 0 < row["generator_us"] < row["us_per_request"]


@pytest.mark.slow
def test_settings_win_over_the_defaults_of_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--candidates", "6", "--quick", "--policies", "cost", "--set", "orchestrator.executors=2", "--json"]
    assert main([*WORDS, *words]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["executors"] == 2
    assert content["keep_states"] == 64
    assert {row["policy"] for row in content["rows"]} == {"", "cost"}
    assert "note" in content, "two executors and a sender on the cores of this machine"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--candidates", "24"], "24 is more than the limit of 23"),
        (["--candidates", "6", "--policies", "best"], "there is no policy"),
        (["--candidates", "6", "--history", "99"], "99"),
        (["--candidates", "6", "--set", "orchestrator.timeline_entries=0"], "timeline_entries"),
        (["--device", "tpu"], "cpu, cuda"),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], reason: str) -> None:
    assert main([*WORDS, *words]) == 2
    assert reason in capsys.readouterr().err


def test_a_document_without_launches_cannot_be_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "empty.json"
    file.write_text(json.dumps({"bench": "orchestrator", "machine": {}, "rows": []}))
    assert main(["bench", "plot", str(file), str(tmp_path / "empty.png")]) == 2
    assert "no launches" in capsys.readouterr().err
