"""Every command that ends by itself, as a real process on a small model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flame.engine import validate
from flame.engine.presets import preset
from flame.schema import Field

Flame = Callable[..., subprocess.CompletedProcess[str]]

HISTORY = {"items": [7, 8, 9], "actions": [0, 1, 4], "timestamps": [100, 160, 90_000]}


@pytest.fixture
def history(tmp_path: Path) -> str:
    file = tmp_path / "history.json"
    file.write_text(json.dumps(HISTORY))
    return str(file)


def test_rank_prints_a_table_best_first_and_the_same_as_json(run_flame: Flame, flame_here: Flame, history: str) -> None:
    words = ["rank", "preset:tiny-hstu", "--user", "4", "--candidates", "17,4,203", "--history-file", history]
    words += ["--backend", "eager", "--scenario", "2"]
    table, plain = run_flame(*words), flame_here(*words, "--json")
    assert (table.returncode, plain.returncode) == (0, 0)
    content = json.loads(plain.stdout)
    assert content["candidates"] == [17, 4, 203]
    assert content["backend"] == "eager"
    assert set(content["times_us"]) == {"admission", "features", "queue", "compute", "respond", "total"}
    head, *lines, last = table.stdout.splitlines()
    assert head.split() == ["candidate", *content["scores"]]
    by_first = sorted(zip(content["scores"]["complete_play"], content["candidates"], strict=True), reverse=True)
    assert [int(line.split()[0]) for line in lines] == [item for _, item in by_first]
    assert float(lines[0].split()[1]) == pytest.approx(by_first[0][0], abs=1e-6)
    assert "tiny-hstu 1 (eager)" in last
    assert "degraded: 0 stale, 0 missing" in table.stderr, "a preset has no store"


def test_build_writes_an_artifact_that_a_second_build_takes(
    run_flame: Flame, flame_here: Flame, tmp_path: Path
) -> None:
    words = ["build", "preset:tiny-climber", "--backend", "eager", "--output", str(tmp_path / "engine"), "--json"]
    first, second = (json.loads(flame(*words).stdout) for flame in (run_flame, flame_here))
    assert first == second, "costs are measured once and kept"
    artifact = json.loads((tmp_path / "engine" / "artifact.json").read_text())
    assert artifact["identity"]["model"] == first["weights"]
    assert [(one["users"], one["history"], one["candidates"]) for one in first["profiles"]] == [(1, 37, 23)]
    assert all(one[f"{kind}_ms"] > 0 for one in first["profiles"] for kind in ("rank", "encode", "score"))
    other = flame_here("build", "preset:tiny-hstu", "--backend", "eager", "--output", str(tmp_path / "engine"))
    assert other.returncode == 1
    assert "built for something else" in other.stderr
    assert "flame build --force" in other.stderr
    text = flame_here(
        "build", "preset:tiny-hstu", "--backend", "eager", "--output", str(tmp_path / "engine"), "--force"
    )
    assert text.returncode == 0
    assert "1 x 37 + 23" in text.stdout


def test_validate_passes_and_prints_the_report(flame_here: Flame) -> None:
    done = flame_here("validate", "preset:tiny-climber-bias", "--backend", "eager", "--requests", "4")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "PASSED"


def test_validate_exits_with_1_when_something_is_out_of_tolerance(
    flame_here: Flame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tolerance that nothing can meet: Kendall's tau above 1."""
    strict = validate.Tolerance(max_relative=1.0, rms_relative=1.0, kendall=1.5, top_overlap=0.0, isolation=1.0)
    monkeypatch.setitem(validate.TOLERANCES, "fp32", strict)
    done = flame_here("validate", "preset:tiny-climber", "--backend", "eager", "--requests", "2", "--json")
    assert done.returncode == 1
    content = json.loads(done.stdout)
    assert content["passed"] is False
    assert len(content["failures"]) == 3


def csv_of(folder: Path, name: str, fields: tuple[Field, ...], ids: list[int]) -> str:
    columns = ["id"]
    for field in fields:
        columns += [field.name] if not field.shape else [f"{field.name}_{word}" for word in range(field.words)]
    lines = [",".join(columns), *(",".join([str(one), *["1"] * (len(columns) - 1)]) for one in ids)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def test_features_are_imported_inspected_and_used(flame_here: Flame, tmp_path: Path) -> None:
    schema = preset("tiny-climber").input
    items = csv_of(tmp_path, "items.csv", schema.item, list(range(1, 50)))
    users = csv_of(tmp_path, "users.csv", schema.user, [4, 5])
    events = tmp_path / "events.csv"
    events.write_text("user,item,action,timestamp\n4,7,0,100\n4,8,1,50\n5,60,2,10\n")
    store = str(tmp_path / "store")
    words = ["features", "import", "preset:tiny-climber", "--items", items, "--users", users, "--events", str(events)]
    done = flame_here(*words, "--output", store, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["items"], report["users"], report["events"], report["events_without_item"]) == (49, 2, 3, 1)
    again = flame_here(*words, "--output", store)
    assert again.returncode == 1
    assert "store exists; replace it" in again.stderr
    info = json.loads(flame_here("features", "info", store, "--json").stdout)
    assert (info["items"], info["users"], info["events"]) == (49, 2, 3)
    assert info["item_fields"] == [field.name for field in schema.item_row.fields]
    assert "genre" in flame_here("features", "info", store).stdout
    rank = ["rank", "preset:tiny-climber", "--user", "4", "--candidates", "7,9", "--backend", "eager", "--json"]
    ranked = json.loads(flame_here(*rank, "--store-path", store).stdout)
    assert ranked["features"] == {"stale": 0, "missing": 0, "unknown": 0, "unknown_user": False}


def test_features_of_a_preset_need_a_folder_to_go_to(flame_here: Flame) -> None:
    done = flame_here("features", "import", "preset:tiny-climber")
    assert done.returncode == 2
    assert "name one with --output" in done.stderr


def test_info_on_what_is_no_store(flame_here: Flame, tmp_path: Path) -> None:
    done = flame_here("features", "info", str(tmp_path))
    assert done.returncode == 1
    assert "has no readable manifest.json" in done.stderr


def test_a_reader_that_goes_away_is_no_error_worth_a_traceback(environ: dict[str, str]) -> None:
    words = ["rank", "preset:tiny-climber", "--user", "1", "--candidates", "1", "--backend", "eager"]
    command = [sys.executable, "-m", "flame", *words, "--log-level", "error"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stream:
        text = stream.read()
    assert process.wait(60) == 141
    assert b"Traceback" not in text
