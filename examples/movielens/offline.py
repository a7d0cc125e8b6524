"""Scores of a model in plain PyTorch, from the data and without any part of the server."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from examples.movielens.evaluation import Question, Scores
from examples.movielens.packing import Example, pack_rows
from examples.movielens.trainer import tensors
from flame.engine.models import RankModel
from flame.examples.movielens import columns, split
from flame.examples.movielens.dataset import Dataset
from flame.schema import InputSchema


def answers(model: RankModel, data: Dataset, schema: InputSchema, until: int) -> Callable[[Question], Scores]:
    """A function from a question to probabilities `[candidates, tasks]`, with item features as of `until`."""
    statistics = columns.Statistics.of(split.training(data.events, until), until)
    item_rows = pack_rows(schema.item_row, columns.item_columns(data.movies, statistics))
    users = columns.user_columns(data.people)
    user_rows = dict(zip(users["id"].tolist(), pack_rows(schema.user_row, users), strict=True))

    @torch.no_grad()
    def answer(question: Question) -> Scores:
        labels = question.labels.astype(np.float32)
        example = Example(question.history, question.candidates, labels, item_rows, user_rows[question.user])
        inputs, _ = tensors([example], schema)
        probabilities: Scores = torch.sigmoid(model.score(model.encode(inputs), inputs))[0].numpy()
        return probabilities

    return answer
