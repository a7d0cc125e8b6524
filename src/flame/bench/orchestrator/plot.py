"""Occupancy and padding as a picture: launches of every executor over time, and shares of time and slots by policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flame.bench.plot import pyplot_without_display, save
from flame.errors import ConfigError

Row = Mapping[str, Any]

_KINDS = {"rank": "#1f5fa8", "encode": "#c98a1b", "score": "#3d8f5f"}
_EMPTY = "#e3b7b7"
_BUSY, _WASTE = "#1f5fa8", "#c0504d"
_LINE, _FRAME, _WIDTH = 0.28, 0.9, 11.0
"""Inches: an executor, what stands around the executors of a policy, and the picture's width."""


def occupancy(document: Mapping[str, Any], file: Path) -> None:
    """Draws a document of `flame bench orchestrator`. Raises `ConfigError` where it holds no launches."""
    launches = {policy: spans for policy, spans in document.get("launches", {}).items() if spans}
    if not launches:
        raise ConfigError("the document has no launches, so there is nothing to draw")
    heights = [_FRAME + _LINE * _executors(spans) for spans in launches.values()]
    pyplot = pyplot_without_display()
    figure = pyplot.figure(figsize=(_WIDTH, max(3.0, sum(heights)) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(launches), 2, width_ratios=(3, 1), height_ratios=heights)
    shortest = min(max(span["end_ms"] for span in spans) for spans in launches.values())
    for place, (policy, spans) in enumerate(launches.items()):
        _executors_over_time(figure.add_subplot(grid[place, 0]), policy, spans, shortest)
    _shares(figure.add_subplot(grid[:, 1]), [row for row in document["rows"] if row["what"] == "capacity"])
    figure.suptitle(_title(document), fontsize=10)
    save(pyplot, figure, file)


def _executors(spans: Sequence[Row]) -> int:
    return 1 + max(int(span["executor"]) for span in spans)


def _executors_over_time(axes: Any, policy: str, spans: Sequence[Row], until_ms: float) -> None:
    """A box for each engine call: its height is the share of candidate slots that were used, above it is padding."""
    for kind, colour in _KINDS.items():
        own = [span for span in spans if span["kind"] == kind]
        used = [0.8 * (span["candidates"] / span["slots"] if span["slots"] else 1.0) for span in own]
        lows = [span["executor"] - 0.4 for span in own]
        begins, widths = [span["begin_ms"] for span in own], [span["end_ms"] - span["begin_ms"] for span in own]
        edge = {"align": "edge", "edgecolor": "white", "linewidth": 0.3}
        axes.bar(begins, [0.8] * len(own), widths, bottom=lows, color=_EMPTY, **edge)
        axes.bar(begins, used, widths, bottom=lows, color=colour, label=kind if own else None, **edge)
    axes.bar([0.0], [0.0], color=_EMPTY, label="padding")
    axes.set_xlim(0.0, until_ms)
    axes.set_yticks(range(_executors(spans)))
    axes.set_ylabel("executor", fontsize=8)
    axes.set_xlabel("ms, saturated", fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(policy, fontsize=9, loc="left")
    axes.legend(fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, borderaxespad=0.2)


def _shares(axes: Any, rows: Sequence[Row]) -> None:
    """Of each policy at saturation: the share of time with an engine call, and the share of slots that were padding."""
    columns = (("busy_share", "time with a launch running", _BUSY), ("padding_waste", "candidate slots empty", _WASTE))
    for place, (column, text, colour) in enumerate(columns):
        lengths = [100 * (row[column] or 0.0) for row in rows]
        lines = [index + 0.38 * (place - 0.5) for index in range(len(rows))]
        drawn = axes.barh(lines, lengths, height=0.34, color=colour, label=text)
        axes.bar_label(drawn, [f"{length:.3g} %" for length in lengths], padding=2, fontsize=7.5)
    axes.set_yticks(range(len(rows)), [row["policy"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 125)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("%", fontsize=8)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)


def _title(document: Mapping[str, Any]) -> str:
    host = document["machine"]
    commit = host.get("commit", "")[:12]
    kinds = dict.fromkeys(gpu.partition(",")[0] for gpu in host.get("gpus") or ())
    chip = " and ".join(kinds) if kinds and document["device"] != "cpu" else host.get("cpu", "")
    return (
        f"flame bench orchestrator: {document['model']}, {document['precision']} on {chip}"
        f"{f', commit {commit}' if commit else ''}"
    )
