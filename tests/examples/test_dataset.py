"""Reading the tables of the wheel."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from flame.errors import SchemaError
from flame.examples.movielens import dataset


def test_events_are_in_the_order_of_time_and_ties_in_the_order_of_the_file(wheel: Path) -> None:
    events = dataset.read(wheel).events
    assert events.timestamps.tolist() == [100, 100, 200, 300, 400]
    assert events.users.tolist() == [1, 1, 2, 1, 2]
    assert events.items.tolist() == [11, 12, 10, 10, 12]
    assert events.ratings.tolist() == [3, 1, 4, 5, 2]
    assert events.items.dtype == np.int64


def test_titles_are_spoken_and_years_found_or_zero(wheel: Path) -> None:
    movies = dataset.read(wheel).movies
    assert str(movies[10]) == "The Usual Suspects (1995)"
    assert str(movies[11]) == "Land Before Time III: The Time of the Great Giving (1995)"
    assert (str(movies[12]), movies[12].year) == ("unkonwn", 0)
    assert str(movies[13]) == "Les Mis\u00e9rables (Poor, The) (1995)"
    assert movies[11].genres == ("Animation", "Children's")


def test_people_keep_age_gender_and_occupation(wheel: Path) -> None:
    assert dataset.read(wheel).people[2] == dataset.Person(2, 53, "F", "other")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("something", "else")
    with pytest.raises(SchemaError, match=r"ml-100k\.inter"):
        dataset.read(path)


def test_other_columns_are_named(tmp_path: Path, tables: dict[str, str]) -> None:
    path = tmp_path / "columns.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for suffix, text in tables.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{suffix}", text.replace("rating:", "stars:"))
    with pytest.raises(SchemaError, match="stars"):
        dataset.read(path)


def test_events_can_be_taken_by_mask_positions_or_slice(wheel: Path) -> None:
    events = dataset.read(wheel).events
    assert events.take(events.users == 2).items.tolist() == [10, 12]
    assert events.take(slice(1, 3)).items.tolist() == [12, 10]
    assert len(events.take(np.array([], np.intp))) == 0
