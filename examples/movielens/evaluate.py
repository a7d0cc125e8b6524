"""Measures the trained package on later interactions: against popularity, and against itself as it is served.

    python -m examples.movielens.evaluate

Prints one row for each way to answer: AUC and NDCG@10 as means over users, and how far its scores and its AUC are
from those of the model in plain PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from examples.movielens import evaluation, offline, served
from examples.movielens.evaluation import Measures, Question, Scores
from flame.config import EngineConfig
from flame.engine import package
from flame.examples.movielens import dataset, download, split
from flame.examples.movielens.columns import Statistics
from flame.examples.movielens.demo import PACKAGE
from flame.examples.movielens.prepare import STORE, prepare

OFFLINE = "offline, plain PyTorch"


@dataclass(frozen=True, slots=True)
class Row:
    """One way to answer: how good it is, and its largest distance from the offline scores (None for a baseline)."""

    name: str
    measures: Measures
    distance: float | None


def evaluate(model: Path, engine: EngineConfig, users: int | None) -> list[Row]:
    """All rows; `users` limits how many people are asked about."""
    data = dataset.read(download.fetch())
    until = split.boundary(data.events)
    asked = evaluation.questions(data.events, until)[:users]
    loaded = package.load(model)
    statistics = Statistics.of(split.training(data.events, until), until)
    plain = offline.answers(loaded.model(), data, loaded.spec.input, until)
    expected = {question.user: plain(question) for question in asked}
    rows = [
        Row("popularity", evaluation.measure(asked, evaluation.popularity(statistics)), None),
        Row("popularity, last 30 days", evaluation.measure(asked, evaluation.recent_popularity(statistics)), None),
        _row(OFFLINE, asked, lambda question: expected[question.user], expected),
    ]
    with tempfile.TemporaryDirectory() as folder:
        prepare(data, until, Path(folder), loaded.spec.input)
        for name, way in (("flame.Ranker", served.by_ranker), ("flame serve, HTTP", served.by_http)):
            with way(model, Path(folder) / STORE, engine) as answer:
                rows.append(_row(name, asked, answer, expected))
    return rows


def _row(
    name: str, asked: Sequence[Question], answer: Callable[[Question], Scores], expected: dict[int, Scores]
) -> Row:
    found = {question.user: answer(question) for question in asked}
    distance = max(float(np.abs(found[user] - scores).max()) for user, scores in expected.items())
    return Row(name, evaluation.measure(asked, lambda question: found[question.user]), distance)


def show(rows: Sequence[Row], console: Console) -> None:
    """The rows as a table, with differences from the offline row."""
    plain = next(row.measures for row in rows if row.name == OFFLINE)
    table = Table(title=f"{plain.users} people, means over people", title_justify="left")
    table.add_column("answered by")
    for name in ("AUC watch", "AUC like", "NDCG@10 like", "AUC like - offline", "largest score difference"):
        table.add_column(name, justify="right")
    for row in rows:
        measures = row.measures
        quality = [f"{value:.4f}" for value in (measures.auc_watch, measures.auc_like, measures.ndcg_like)]
        table.add_row(row.name, *quality, *_difference(row, plain))
    console.print(table)


def _difference(row: Row, plain: Measures) -> list[str]:
    if row.distance is None:
        return ["", ""]
    return [f"{row.measures.auc_like - plain.auc_like:+.1e}", f"{row.distance:.1e}"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.movielens.evaluate", description=__doc__)
    parser.add_argument("--package", type=Path, default=PACKAGE, help="model folder (default: the committed one)")
    parser.add_argument("--backend", default="auto", help="backend of the served rows")
    parser.add_argument("--precision", default="auto", help="precision of the served rows: auto, fp32, bf16 or fp16")
    parser.add_argument("--users", type=int, help="ask about the first so many people only")
    options = parser.parse_args()
    engine = EngineConfig(backend=options.backend, precision=options.precision)
    show(evaluate(options.package, engine, options.users), Console())


if __name__ == "__main__":
    main()
