"""The README's table and the plot are drawn from the document, and documents of several runs become one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flame.bench import report, table
from flame.cli.main import main
from flame.errors import ConfigError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = sorted(set(RESULTS.glob("engine-*.json")) - {RESULTS / "engine-cpu.json"})
EMPTY = "before\n<!-- engine -->\n<!-- /engine -->\nafter\n"


def row(scenario: str, users: int, variant: str, ms: float, **more: Any) -> dict[str, Any]:
    counted = {"history": 512, "candidates": 128, "pairs": 128 * users}
    key = {"scenario": scenario, "users": users, "variant": variant, "part": "model", "kind": "rank"}
    rate = {"pairs_per_s": 1e3 * 128 * users / ms, "share_of_peak": 0.412, "ratio": 0.5 / ms}
    return key | counted | {"ms_median": ms, "ms_p99": ms} | rate | more


def document(*rows: dict[str, Any], **facts: Any) -> dict[str, Any]:
    machine = {"commit": "0123456789abcdef", "torch": "2.11.0"}
    return {
        "bench": "engine",
        "machine": machine,
        "device": "NVIDIA H200",
        "precision": "bf16",
        "rows": list(rows),
    } | facts


SMALL = document(
    row("base", 1, "flex-graph", 0.5),
    row("base", 1, "flame", 0.1, ratio_to_best=4.0),
    row("base", 1, "flame", 0.05, kind="score"),
    row("base", 1, "flame", 0.09, part="stack"),
    row("base", 8, "flame", 0.2, ratio=None, pairs=500),
    {"scenario": "base", "users": 8, "variant": "flex-graph", "reason": "too large"},
)


def test_the_table_says_what_the_rows_say() -> None:
    caption, gap, head, rule, first, second = table.engine(SMALL).splitlines()
    assert "NVIDIA H200, bf16, PyTorch 2.11.0, commit 0123456" in caption
    assert gap == ""
    assert head.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first.split(" | ")[1:] == ["1", "-", "-", "0.500", "**0.100**", "**5.0x**", "4.0x", "1.28", "41%", "0.050 |"]
    assert second.split(" | ")[0] == "| base: 512 events, up to 128 candidates"
    assert second.split(" | ")[4:] == ["-", "**0.200**", "-", "-", "5.12", "41%", "- |"]


def test_what_a_row_says_of_itself_stands_below_the_table() -> None:
    plain, ours = row("hstu", 1, "flex-graph", 0.5, note="another softmax"), row("hstu", 1, "flame", 0.1)
    *_, gap, note = table.engine(document(plain, ours, plain | {"users": 8})).splitlines()
    assert (gap, note) == ("", "hstu, flex-graph: another softmax.")


def test_a_document_without_our_rows_has_no_table() -> None:
    with pytest.raises(ConfigError, match="no rows of the whole model"):
        table.engine(document(row("base", 1, "flex-graph", 0.5)))


def test_only_what_stands_between_the_comments_is_replaced() -> None:
    once = table.into(EMPTY, "engine", "| a |")
    assert once == "before\n<!-- engine -->\n| a |\n<!-- /engine -->\nafter\n"
    assert table.into(once, "engine", "| b |") == once.replace("| a |", "| b |")


@pytest.mark.parametrize("text", ["nothing", "<!-- /engine --><!-- engine -->", EMPTY + EMPTY])
def test_a_place_that_is_not_marked_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="the table's place is not marked"):
        table.into(text, "engine", "x")


def test_the_command_writes_the_table_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, page, picture = tmp_path / "engine.json", tmp_path / "page.md", tmp_path / "engine.png"
    source.write_text(json.dumps(SMALL))
    page.write_text(EMPTY)
    assert main(["bench", "table", str(source), "--into", str(page)]) == 0
    assert main(["bench", "table", str(source)]) == 0
    assert page.read_text() == table.into(EMPTY, "engine", capsys.readouterr().out.strip())
    assert main(["bench", "plot", str(source), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_tells_what_is_no_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "engine.json"
    for content, reason in (("{", "no JSON document"), ("[]", "no document of a benchmark")):
        broken.write_text(content)
        assert main(["bench", "table", str(broken)]) == 2
        assert reason in capsys.readouterr().err
    assert main(["bench", "table", str(tmp_path / "none.json")]) == 2


def test_later_documents_replace_rows_of_the_same_variant(tmp_path: Path) -> None:
    first, second, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"
    first.write_text(json.dumps(SMALL))
    newer = document(row("base", 8, "flex-graph", 0.7), row("base", 1, "flame", 0.08), row("long", 1, "flame", 1.0))
    newer["machine"] = {"commit": "fedcba"}
    second.write_text(json.dumps(newer))
    assert main(["bench", "merge", str(out), str(first), str(second)]) == 0
    content = report.read(out)
    assert content["commits"] == ["0123456789abcdef", "fedcba"]
    assert [(one["scenario"], one["users"], one["variant"], one.get("ms_median")) for one in content["rows"]] == [
        ("base", 1, "flex-graph", 0.5),
        ("base", 8, "flame", 0.2),
        ("base", 8, "flex-graph", 0.7),
        ("base", 1, "flame", 0.08),
        ("long", 1, "flame", 1.0),
    ]
    with pytest.raises(ConfigError, match="documents differ in device"):
        report.merged([SMALL, document(device="cpu")])


@pytest.mark.parametrize("measured", MEASURED, ids=lambda file: file.stem)
def test_the_readmes_tables_are_the_measured_ones(measured: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table.into(text, measured.stem, table.engine(report.read(measured))) == text
