"""Parquet and CSV as one thing: a table of named columns, read in batches, whose rows can be named in an error.

Rows count from 1 within their file, headers not counted.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.csv as pa_csv  # type: ignore[import-untyped]
import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]

from flame.errors import SchemaError

BATCH_ROWS = 65_536
_BLOCK_BYTES = 4 * 2**20
_CSV_ERROR = re.compile(r"(?:In CSV column #(?P<column>\d+): )?(?:.*?)Row #(?P<row>\d+): (?P<text>.*)", re.DOTALL)

Progress = Callable[[str, int, int], None]
"""Called after every batch with the stage, the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of one file; `first` is the number of the first of them in the file, from 0."""

    path: Path
    first: int
    data: Any

    def wrong(self, row: int, column: str, reason: str) -> SchemaError:
        """The error that names a value: `row` counts from 0 in this batch."""
        return SchemaError(f"{self.path.name}, row {self.first + row + 1}, column {column!r}: {reason}")


class Table:
    """One file, or all `.parquet` or all `.csv` files of a folder in order of their names, with equal columns.

    Raises `SchemaError` for what is not there, cannot be read, or differs between files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = _files(path)
        self.columns = _columns(self.files[0])
        for file in self.files[1:]:
            if _columns(file) != self.columns:
                raise SchemaError(f"{file.name} has columns {_columns(file)}, {self.files[0].name} has {self.columns}")
        self.bytes = sum(file.stat().st_size for file in self.files)

    def batches(self, stage: str, integers: Sequence[str], progress: Progress | None) -> Iterator[Batch]:
        """All rows in order. Columns named in `integers` are read as int64 from CSV, all others as float64."""
        before = 0
        for file in self.files:
            first = 0
            for data, done in _read(file, self.columns, integers):
                yield Batch(file, first, data)
                first += data.num_rows
                if progress is not None:
                    progress(stage, before + done, self.bytes)
            before += file.stat().st_size


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise SchemaError(f"{path} does not exist")
    if not path.is_dir():
        _suffix(path)
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (".parquet", ".csv"))
    if not files or len({file.suffix for file in files}) != 1:
        raise SchemaError(f"folder {path} must hold .parquet files or .csv files, one of the two")
    return files


def _suffix(path: Path) -> str:
    if path.suffix not in (".parquet", ".csv"):
        raise SchemaError(f"{path.name}: a table ends in .parquet or .csv")
    return path.suffix


def _columns(path: Path) -> list[str]:
    if _suffix(path) == ".csv":
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                names = next(csv.reader(file), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise SchemaError(f"{path.name} is not CSV text: {error}") from error
    else:
        with _readable(path):
            names = pa_parquet.read_schema(path).names
    if len(set(names)) != len(names) or not names:
        raise SchemaError(f"{path.name}: columns must have unique names, got {names}")
    return list(names)


def _read(path: Path, columns: list[str], integers: Sequence[str]) -> Iterator[tuple[Any, int]]:
    """Record batches of one file and the bytes of it that are done."""
    return _read_csv(path, columns, integers) if path.suffix == ".csv" else _read_parquet(path)


def _read_parquet(path: Path) -> Iterator[tuple[Any, int]]:
    size, rows = path.stat().st_size, 0
    with _readable(path), pa_parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            rows += batch.num_rows
            yield batch, size * rows // file.metadata.num_rows


def _read_csv(path: Path, columns: list[str], integers: Sequence[str]) -> Iterator[tuple[Any, int]]:
    """Only an empty value is null: a written NaN is a value, and a wrong one."""
    types = {name: pa.int64() if name in integers else pa.float64() for name in columns}
    with _readable(path, columns), path.open("rb") as file:
        reader = pa_csv.open_csv(
            file,
            pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            convert_options=pa_csv.ConvertOptions(column_types=types, null_values=[""]),
        )
        for batch in reader:
            yield batch, file.tell()


class _readable:  # noqa: N801 - used as a statement
    """Turns what pyarrow and the system say about a file into a `SchemaError`."""

    def __init__(self, path: Path, columns: list[str] | None = None) -> None:
        self._path = path
        self._columns = columns or []

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if isinstance(error, pa.ArrowException):
            raise SchemaError(self._text(str(error))) from error
        if isinstance(error, OSError):
            raise SchemaError(f"{self._path.name}: {error.strerror or error}") from error

    def _text(self, message: str) -> str:
        """pyarrow counts CSV lines from 1 with the header as the first, and columns from 0."""
        found = _CSV_ERROR.match(message)
        if not found:
            return f"{self._path.name}: {message}"
        column = f", column {self._columns[int(found['column'])]!r}" if found["column"] else ""
        return f"{self._path.name}, row {int(found['row']) - 1}{column}: {found['text']}"
