"""Plots of reports. Needs matplotlib, which only the development extra brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from flame.errors import ConfigError

Row = Mapping[str, Any]


def bars(rows: Sequence[Row], file: Path) -> None:
    """`flame bench engine`: median milliseconds of every variant, a group for each scenario, users and kind."""
    timed = [row for row in rows if "ms_median" in row]
    groups = list(dict.fromkeys((row["scenario"], row["users"], row["kind"]) for row in timed))
    variants = list(dict.fromkeys(row["variant"] for row in timed))
    pyplot = pyplot_without_display()
    figure, axes = pyplot.subplots(figsize=(1.5 + 1.6 * len(groups), 4.5), layout="constrained")
    width = 0.8 / max(1, len(variants))
    for place, variant in enumerate(variants):
        own = {
            (row["scenario"], row["users"], row["kind"]): row["ms_median"] for row in timed if row["variant"] == variant
        }
        heights = [own.get(group, 0.0) for group in groups]
        drawn = axes.bar([index + (place + 0.5) * width - 0.4 for index in range(len(groups))], heights, width)
        axes.bar_label(drawn, fmt="%.3g", fontsize=7)
        drawn.set_label(variant)
    axes.set_xticks(range(len(groups)), [f"{scenario}, {users} users\n{kind}" for scenario, users, kind in groups])
    axes.set_ylabel("median, ms")
    axes.legend()
    save(pyplot, figure, file)


def rates(rows: Sequence[Row], file: Path) -> None:
    """`flame load --search-p99`: p99 over the rate of every step, with the bound and what was held."""
    steps = [row for row in rows if row.get("mode") == "open" and row["ms_p99"] is not None]
    pyplot = pyplot_without_display()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for held, marker, text in ((True, "o", "held"), (False, "x", "not held")):
        some = [row for row in steps if row["held"] is held]
        axes.plot([row["rate"] for row in some], [row["ms_p99"] for row in some], marker, label=text)
    axes.axhline(steps[0]["bound_p99_ms"] if steps else 0.0, linestyle="--", linewidth=1)
    axes.set_xlabel("requests per second, open loop")
    axes.set_ylabel("p99, ms")
    axes.set_yscale("log")
    axes.legend()
    save(pyplot, figure, file)


def pyplot_without_display() -> ModuleType:
    """Matplotlib for files. Raises `ConfigError` where it is missing."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("a plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def save(pyplot: Any, figure: Any, file: Path) -> None:
    """Writes a figure, and its folder where that is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
