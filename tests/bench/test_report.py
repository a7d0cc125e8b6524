"""Reports: the last line is one JSON document, machines are described, busy ones are named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flame
from flame.bench import machine, report
from flame.bench.environment import BusyMachine, Environment, observe, require_quiet
from flame.bench.timing import interleaved

QUIET = Environment(load_average=0.1, busy_share=0.0, cores=2)
BUSY = Environment(load_average=3.0, busy_share=0.9, cores=2)
ROWS = [
    {"variant": "eager", "ms": np.float64(1.23456789), "count": np.int64(3), "errors": {}},
    {"variant": "compiled", "ms": float("inf"), "reason": "too\nlate", "errors": {"timeout": 2}},
]


@pytest.mark.parametrize("only_json", [True, False])
def test_the_last_line_is_the_document(capsys: pytest.CaptureFixture[str], tmp_path: Path, only_json: bool) -> None:
    file = tmp_path / "new" / "rows.json"
    report.emit(report.document("engine", ROWS, QUIET, seed=3), only_json=only_json, output=file)
    lines = capsys.readouterr().out.splitlines()
    content = json.loads(lines[-1])
    assert (len(lines) == 1) == only_json
    assert content == json.loads(file.read_text())
    assert list(content) == ["bench", "machine", "seed", "rows"]
    assert content["rows"][0] == {"variant": "eager", "ms": 1.23457, "count": 3, "errors": {}}
    assert content["rows"][1]["ms"] is None
    assert content["machine"]["load_average"] == 0.1


def test_the_table_shows_every_row_and_column() -> None:
    stream = io.StringIO()
    report.print_table("engine", ROWS, stream)
    text = stream.getvalue()
    for word in ("variant", "count", "reason", "eager", "1.235", "late"):
        assert word in text
    assert "errors" not in text, "what does not fit a cell is left to the JSON"


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (True, "yes"), (3, "3"), (1234.5, "1,234"), (0.000123456, "0.0001235"), ("x", "x")]
)
def test_cells_are_short(value: object, text: str) -> None:
    assert report.text_of(value) == text


def test_the_machine_is_described_without_heavy_imports() -> None:
    code = (
        "import sys, json; from flame.bench import machine; print(json.dumps(machine.describe()));"
        "assert not {'torch', 'numba', 'grpc', 'openvino'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    host = json.loads(done.stdout)
    assert host["cores"] == len(os.sched_getaffinity(0))
    assert host["memory_gib"] > 0
    assert host["flame"] == flame.__version__
    assert host["cpu"]
    assert "torch" in host


def test_a_copy_without_history_is_told_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loose = tmp_path / "loose.py"
    loose.write_text("1")
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert machine._commit(loose) == {}
    monkeypatch.setenv("GIT_COMMIT", "0123456789")
    assert machine._commit(loose) == {"commit": "0123456789", "dirty": None}


def test_a_commit_is_told_only_of_files_that_git_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_COMMIT", raising=False)

    def git(*words: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, "-C", tmp_path, *words], check=True, capture_output=True)

    held, loose = tmp_path / "held.py", tmp_path / "loose.py"
    held.write_text("1")
    loose.write_text("1")
    git("init")
    git("add", "held.py")
    git("commit", "-m", "one")
    assert machine._commit(loose) == {}
    clean = machine._commit(held)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    held.write_text("2")
    assert machine._commit(held) == {"commit": clean["commit"], "dirty": True}


def test_a_busy_machine_is_named_loudly_or_refused() -> None:
    stream = io.StringIO()
    require_quiet(QUIET, strict=True, stream=stream)
    assert stream.getvalue() == ""
    require_quiet(BUSY, strict=False, stream=stream)
    assert "WARNING: THIS MACHINE IS BUSY" in stream.getvalue()
    with pytest.raises(BusyMachine, match=r"load average 3.0 on 2 cores"):
        require_quiet(BUSY, strict=True, stream=stream)


def test_other_work_is_seen() -> None:
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert observe(1.0).busy_share >= 0.8 / (os.cpu_count() or 1)
    finally:
        spinner.kill()
        spinner.wait()


def test_rounds_are_interleaved_in_alternating_order_and_warm_up_is_left_out() -> None:
    order: list[str] = []
    ticks: list[int] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    samples = interleaved(calls, 3, warm_up=1, tick=lambda: ticks.append(1))
    assert "".join(order) == "cba" + "abc" + "cba" + "abc"
    assert len(ticks) == 4
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert all((values > 0).all() for values in samples.values())
