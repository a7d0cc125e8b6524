"""What a precision costs in AUC: the trained package ranked in each, against the eager model in fp32.

    python -m examples.movielens.precision --output benchmarks/results/precision-h200.json
    python -m examples.movielens.precision --backend compiled --precisions fp32      # on a CPU

Every row is measured through `flame.Ranker`, history and features from the store, by the questions of `evaluate`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.movielens import evaluation, offline, served
from examples.movielens.evaluation import Measures, Question, Scores
from flame.bench import environment, report
from flame.config import EngineConfig
from flame.engine import package
from flame.examples.movielens import dataset, download, split
from flame.examples.movielens.dataset import Dataset
from flame.examples.movielens.demo import PACKAGE
from flame.examples.movielens.prepare import STORE, prepare

Row = dict[str, Any]


def measure(model: Path, data: Dataset, engines: Sequence[EngineConfig], users: int | None = None) -> list[Row]:
    """A row for the eager model in fp32 and one for each engine; `users` limits how many people are asked about."""
    until = split.boundary(data.events)
    asked = evaluation.questions(data.events, until)[:users]
    loaded = package.load(model)
    plain = offline.answers(loaded.model(), data, loaded.spec.input, until)
    expected = [plain(question) for question in asked]
    truth = _measures(asked, expected)
    rows = [_row("eager", "fp32", truth, truth, 0.0)]
    with tempfile.TemporaryDirectory() as folder:
        prepare(data, until, Path(folder), loaded.spec.input)
        for engine in engines:
            with served.by_ranker(model, Path(folder) / STORE, engine) as answer:
                found = [answer(question) for question in asked]
            distance = max(float(np.abs(one - two).max()) for one, two in zip(found, expected, strict=True))
            rows.append(_row(engine.backend, engine.precision, _measures(asked, found), truth, distance))
    return rows


def _measures(asked: Sequence[Question], scores: Sequence[Scores]) -> Measures:
    by_user = {question.user: own for question, own in zip(asked, scores, strict=True)}
    return evaluation.measure(asked, lambda question: by_user[question.user])


def _row(backend: str, precision: str, found: Measures, truth: Measures, distance: float) -> Row:
    return {
        "backend": backend,
        "precision": precision,
        "people": found.users,
        "auc_watch": found.auc_watch,
        "auc_like": found.auc_like,
        "ndcg_like": found.ndcg_like,
        "auc_watch_change": found.auc_watch - truth.auc_watch,
        "auc_like_change": found.auc_like - truth.auc_like,
        "largest_score_difference": distance,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.movielens.precision", description=__doc__)
    parser.add_argument("--package", type=Path, default=PACKAGE, help="model folder (default: the committed one)")
    parser.add_argument("--backend", default="fused", help="backend of the rows (fused)")
    parser.add_argument("--precisions", default="fp32,fp16,bf16", metavar="P,...", help="(fp32,fp16,bf16)")
    parser.add_argument("--cache", type=Path, help="folder of the downloaded data (default: the user's cache)")
    parser.add_argument("--users", type=int, help="ask about the first so many people only")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON document to a file as well")
    options = parser.parse_args()
    engines = [EngineConfig(backend=options.backend, precision=one) for one in options.precisions.split(",")]
    data = dataset.read(download.fetch(options.cache))
    rows = measure(options.package, data, engines, options.users)
    report.emit(report.document("precision", rows, environment.observe()), only_json=False, output=options.output)


if __name__ == "__main__":
    main()
