"""Feature rows as a store holds them, made from the data without a store: what training and offline evaluation read."""

from __future__ import annotations

from flame.examples.movielens import columns
from flame.examples.movielens.dataset import Dataset
from flame.examples.movielens.schema import MOVIES
from flame.features.rows import pack_rows
from flame.layout import Words
from flame.schema import InputSchema


def of_items(data: Dataset, schema: InputSchema, statistics: columns.Statistics) -> Words:
    """Rows `[MOVIES, words]` by id - 1."""
    return pack_rows(schema.item_row, columns.item_columns(data.movies, statistics), MOVIES)


def of_users(data: Dataset, schema: InputSchema) -> dict[int, Words]:
    """A row `[words]` of each user."""
    packed = pack_rows(schema.user_row, columns.user_columns(data.people), len(data.people))
    return dict(zip(sorted(data.people), packed, strict=True))
