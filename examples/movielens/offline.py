"""Scores of a model in plain PyTorch, from the data and without any part of the server."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from examples.movielens.evaluation import Question, Scores
from examples.movielens.packing import Example
from examples.movielens.trainer import tensors
from flame.engine.models import RankModel
from flame.examples.movielens import columns, rows, split
from flame.examples.movielens.dataset import Dataset
from flame.schema import InputSchema


def answers(model: RankModel, data: Dataset, schema: InputSchema, until: int) -> Callable[[Question], Scores]:
    """A function from a question to probabilities `[candidates, tasks]`, with item features as of `until`."""
    statistics = columns.Statistics.of(split.training(data.events, until), until)
    item_rows, user_rows = rows.of_items(data, schema, statistics), rows.of_users(data, schema)
    unknown = np.empty(0, np.int64)

    @torch.no_grad()
    def answer(question: Question) -> Scores:
        labels = question.labels.astype(np.float32)
        user_row = user_rows[question.user]
        example = Example(question.history, question.candidates, labels, item_rows, user_row, unknown)
        inputs, _ = tensors([example], schema)
        probabilities: Scores = torch.sigmoid(model.score(model.encode(inputs), inputs))[0].numpy()
        return probabilities

    return answer
