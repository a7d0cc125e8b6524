"""The ladder as bars: a panel for each scenario and number of users, a bar for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flame.bench.plot import pyplot_without_display, save
from flame.errors import ConfigError

Row = Mapping[str, Any]

_OTHERS, _LESS, _OURS = "#9aa3ad", "#8fbbe8", "#1f5fa8"
_PANELS = 3
"""Panels in a line, at least: a scenario with more users has its own longer one."""

_BAR, _FRAME, _WIDTH = 0.23, 0.75, 5.0
"""Inches: a bar with its gap, what stands around the bars of a panel, and a panel's width."""


def ladder(document: Mapping[str, Any], file: Path) -> None:
    """Draws rates and times of the whole model by variant. Raises `ConfigError` where nothing was timed."""
    rows = [row for row in document["rows"] if row.get("part") == "model" and row.get("kind") == "rank"]
    if not rows:
        raise ConfigError("the document has no times of whole models, so there is nothing to draw")
    grid = _grid(rows)
    columns = max(len(panels) for panels in grid)
    heights = [_FRAME + _BAR * max(len(panel) for panel in panels) for panels in grid]
    pyplot = pyplot_without_display()
    figure, axes = pyplot.subplots(
        len(grid),
        columns,
        figsize=(_WIDTH * columns, sum(heights) + 0.5),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for panels, places in zip(grid, axes, strict=True):
        for index, place in enumerate(places):
            if index < len(panels):
                _panel(place, panels[index])
            else:
                place.set_axis_off()
    figure.suptitle(_title(document), fontsize=11)
    save(pyplot, figure, file)


def _grid(rows: Sequence[Row]) -> list[list[list[Row]]]:
    """Lines of panels of rows; the panels of a scenario stay in one line, and small scenarios share one."""
    by_scenario: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        by_scenario.setdefault(row["scenario"], {}).setdefault(row["users"], []).append(row)
    lines: list[list[list[Row]]] = []
    for by_users in by_scenario.values():
        panels = list(by_users.values())
        if lines and len(lines[-1]) + len(panels) <= _PANELS:
            lines[-1] += panels
        else:
            lines.append(panels)
    return lines


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    """The slowest on top; lengths are rates, so that they begin at zero and compare by eye."""
    own = sorted(rows, key=lambda row: row["pairs_per_s"])
    rates = [row["pairs_per_s"] / 1e6 for row in own]
    drawn = axes.barh(range(len(own)), rates, height=0.74, color=[_colour(row["variant"]) for row in own])
    axes.bar_label(drawn, [_label(row) for row in own], padding=3, fontsize=7.5)
    axes.set_yticks(range(len(own)), [row["variant"] for row in own], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(rates))
    axes.set_xlabel("million user-item pairs per second", fontsize=7.5)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    first = own[0]
    users = "1 user" if first["users"] == 1 else f"{first['users']} users"
    text = f"{first['scenario']}, {users}: {first['history']} events, {first['pairs']} pairs a launch"
    axes.set_title(text, fontsize=9, loc="left")


def _label(row: Row) -> str:
    """Milliseconds, and times over FlexAttention where that was measured."""
    ratio = f"  {row['ratio']:.2f}x" if row.get("ratio") else ""
    return f"{row['ms_median']:.3g} ms{ratio}"


def _colour(variant: str) -> str:
    return _OURS if variant == "flame" else _LESS if variant.startswith("flame") else _OTHERS


def _title(document: Mapping[str, Any]) -> str:
    commit = document["machine"].get("commit", "")[:12]
    return (
        f"flame bench engine: whole models on {document.get('device', 'a GPU')}, {document.get('precision', 'bf16')}"
        f"{f', commit {commit}' if commit else ''}; device time of a launch, x: over flex-graph"
    )
