"""Reads MovieLens-100K out of the wheel: tab-separated tables whose header names `column:type`.

Missing and malformed values are part of the data (one movie is "unkonwn" and has no year), so a year that is not a
number becomes 0; anything else that does not parse raises.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flame.errors import SchemaError

Ints = NDArray[np.int64]

_FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_ARTICLE = re.compile(r"^(.*), (The|A|An|La|Le|Les|Il|El|Das|Der|Die|Los|L')(?= \(|$)(.*)$")


@dataclass(frozen=True, slots=True)
class Events:
    """Ratings in the order of time, ties in the order of the file: int64 columns `[events]`, seconds since 1970."""

    users: Ints
    items: Ints
    ratings: Ints
    timestamps: Ints

    def __len__(self) -> int:
        return len(self.users)

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Events:
        """The events that a mask, positions or a slice pick."""
        return Events(self.users[which], self.items[which], self.ratings[which], self.timestamps[which])


@dataclass(frozen=True, slots=True)
class Movie:
    """One movie; `year` is 0 where the data does not know it."""

    item: int
    title: str
    year: int
    genres: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.title} ({self.year})" if self.year else self.title


@dataclass(frozen=True, slots=True)
class Person:
    """One user."""

    user: int
    age: int
    gender: str
    occupation: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """The whole of MovieLens-100K; movies and people by id."""

    events: Events
    movies: dict[int, Movie]
    people: dict[int, Person]


def read(wheel: Path) -> Dataset:
    """The data set inside `wheel`. Raises `SchemaError` when a table is missing or has other columns than expected."""
    with zipfile.ZipFile(wheel) as archive:
        ratings = _table(archive, "inter", ("user_id", "item_id", "rating", "timestamp"))
        movies = _table(archive, "item", ("item_id", "movie_title", "release_year", "class"))
        people = _table(archive, "user", ("user_id", "age", "gender", "occupation", "zip_code"))
    return Dataset(
        events=_events(ratings),
        movies={movie.item: movie for movie in map(_movie, movies)},
        people={int(row[0]): Person(int(row[0]), int(row[1]), row[2], row[3]) for row in people},
    )


def _table(archive: zipfile.ZipFile, kind: str, columns: tuple[str, ...]) -> list[list[str]]:
    name = f"{_FOLDER}.{kind}"
    try:
        header, *lines = archive.read(name).decode().splitlines()
    except KeyError:
        raise SchemaError(f"{archive.filename} holds no {name}; it is not the expected wheel") from None
    found = tuple(column.partition(":")[0] for column in header.split("\t"))
    if found != columns:
        raise SchemaError(f"{name} has columns {found}, expected {columns}")
    return [line.split("\t") for line in lines if line]


def _events(rows: list[list[str]]) -> Events:
    users, items, ratings, timestamps = np.array(rows, dtype=np.float64).astype(np.int64).reshape(-1, 4).T
    order = np.argsort(timestamps, kind="stable")
    return Events(users[order], items[order], ratings[order], timestamps[order])


def _movie(row: list[str]) -> Movie:
    item, title, year, genres = row
    named = _YEAR.search(title)
    if named:
        title, year = title[: named.start()].rstrip(), named[1]
    return Movie(int(item), _spoken(title), int(year) if year.isdigit() else 0, tuple(genres.split()))


def _spoken(title: str) -> str:
    """The title as people say it: The Usual Suspects, not "Usual Suspects, The"."""
    found = _ARTICLE.match(title)
    return f"{found[2]} {found[1]}{found[3]}" if found else title
