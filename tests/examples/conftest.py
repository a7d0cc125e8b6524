"""A tiny data set in the format of the real one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

RATINGS = """user_id:token\titem_id:token\trating:float\ttimestamp:float
1\t10\t5\t300
1\t11\t3\t100
2\t10\t4\t200
1\t12\t1\t100
2\t12\t2\t400
"""
MOVIES = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
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
    return {"inter": RATINGS, "item": MOVIES, "user": PEOPLE}


@pytest.fixture
def wheel(tmp_path: Path, tables: dict[str, str]) -> Path:
    """A zip file that holds `tables` where the real wheel holds its own."""
    path = tmp_path / "tiny.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for suffix, text in tables.items():
            archive.writestr(f"{FOLDER}.{suffix}", text)
    return path
