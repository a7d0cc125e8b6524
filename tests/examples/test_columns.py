"""Feature columns: in the schema's bounds, and free of what they shall predict."""

from __future__ import annotations

import numpy as np
import pytest

from flame.examples.movielens import columns, split
from flame.examples.movielens.columns import Statistics
from flame.examples.movielens.dataset import Dataset, Movie, Person
from flame.examples.movielens.schema import GENRES, ITEM_FIELDS, MOVIES, USER_FIELDS, input_schema
from flame.schema import Field


def in_bounds(field: Field, column: np.ndarray, rows: int) -> None:
    assert column.shape == (rows, *field.shape)
    if field.vocabulary:
        assert column.dtype == np.int32
        assert 0 <= column.min() <= column.max() < field.vocabulary
    else:
        assert column.dtype == np.float32
        assert np.abs(column).max() < 4


def test_every_field_of_the_schema_has_a_column_in_its_bounds(taste: Dataset) -> None:
    until = split.boundary(taste.events)
    items = columns.item_columns(taste.movies, Statistics.of(split.training(taste.events, until), until))
    users = columns.user_columns(taste.people)
    assert set(items) == {field.name for field in ITEM_FIELDS}
    assert set(users) == {field.name for field in USER_FIELDS}
    for field in ITEM_FIELDS:
        in_bounds(field, items[field.name], MOVIES)
    for field in USER_FIELDS:
        in_bounds(field, users[field.name], len(taste.people))


def test_statistics_refuse_events_of_the_evaluation(taste: Dataset) -> None:
    with pytest.raises(AssertionError):
        Statistics.of(taste.events, split.boundary(taste.events))


def test_popularity_does_not_depend_on_later_events(taste: Dataset) -> None:
    until = split.boundary(taste.events)
    later = taste.events.take(taste.events.timestamps >= until)
    assert len(later)
    trained = split.training(taste.events, until)
    again = split.training(taste.events.take(taste.events.timestamps < until), until)
    for name, column in columns.popularity(Statistics.of(trained, until)).items():
        np.testing.assert_array_equal(column, columns.popularity(Statistics.of(again, until))[name])


def test_statistics_without_a_user_are_those_of_all_others(taste: Dataset) -> None:
    until = int(taste.events.timestamps.max()) + 1
    own = split.by_user(taste.events)[7]
    others = taste.events.take(taste.events.users != 7)
    expected = columns.popularity(Statistics.of(others, until))
    for name, column in columns.popularity(Statistics.of(taste.events, until).minus(own)).items():
        np.testing.assert_allclose(column, expected[name], rtol=1e-6)


def test_no_events_at_all_give_finite_features(taste: Dataset) -> None:
    nothing = taste.events.take(slice(0, 0))
    for column in columns.popularity(Statistics.of(nothing, 1)).values():
        assert np.isfinite(column).all()


def test_years_ages_and_unknown_words() -> None:
    movies = {item: Movie(item, "", year=0, genres=()) for item in range(1, MOVIES + 1)}
    movies |= {1: Movie(1, "", 1939, ("Action", "Western")), 2: Movie(2, "", 1998, ("unknown",))}
    found = columns.description(movies)
    assert found["year"][:3].tolist() == [1, 15, 0]
    assert found["genres"][0].tolist() == [1, 18, 0, 0, 0, 0]
    assert found["genres"][1, 0] == len(GENRES)
    people = {3: Person(3, 17, "F", "pirate"), 1: Person(1, 18, "X", "artist")}
    users = columns.user_columns(people)
    assert users["age"].tolist() == [2, 1]
    assert users["gender"].tolist() == [0, 2]
    assert users["occupation"].tolist() == [2, 0]


def test_the_schema_keeps_two_scales_of_history() -> None:
    schema = input_schema()
    assert [sequence.name for sequence in schema.sequences] == ["all", "liked"]
    assert schema.sequence_capacity(schema.max_history) == 128
