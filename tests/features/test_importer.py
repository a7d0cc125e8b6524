"""Import: what goes in comes out, and whatever is wrong is named by file, row and column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import pytest

from flame.errors import SchemaError
from flame.features.importer import ImportReport, events, import_features, tables
from flame.features.rows import pack_rows
from flame.features.store.file import FileStore
from flame.schema import Field, InputSchema

Columns = dict[str, Any]


def good_items(count: int = 40) -> Columns:
    ids = np.arange(count) * 7 - 3
    return {
        "id": ids,
        "price": ids * 0.5,
        "genres": [[int(i) % 20, 1, 2] for i in range(count)],
        "year": np.arange(count) % 200,
        "scores_0": ids + 0.0,
        "scores_1": ids + 1.0,
        "scores_2": ids + 2.0,
        "scores_3": ids + 3.0,
    }


def good_users() -> Columns:
    return {
        "id": [5, 3, 9],
        "age": [50, 30, 90],
        "taste_0": [0.5, 1.0, 2.0],
        "taste_1": [1, 2, 3],
        "taste_2": [4, 5, 6],
    }


def good_events(count: int = 500, seed: int = 0) -> Columns:
    random = np.random.default_rng(seed)
    return {
        "user": random.choice([3, 9, 70, 71], count),
        "item": random.choice(np.arange(45) * 7 - 3, count),
        "action": random.integers(0, 4, count),
        "timestamp": random.integers(1000, 1100, count),
    }


def write(path: Path, columns: Columns) -> Path:
    """A table file; a list column becomes columns of its elements in CSV."""
    if path.suffix == ".parquet":
        pa_parquet.write_table(pa.table(columns), path)
        return path
    flat: Columns = {}
    for name, values in columns.items():
        if isinstance(values[0], list):
            flat |= {f"{name}_{place}": [row[place] for row in values] for place in range(len(values[0]))}
        else:
            flat[name] = values
    pa_csv.write_csv(pa.table(flat), path)
    return path


@pytest.fixture
def bring(tmp_path: Path, schema: InputSchema) -> Callable[..., tuple[Path, ImportReport]]:
    """Imports three tables, good ones unless given, and returns the store folder and the report."""

    def run(suffix: str = ".parquet", **changes: Any) -> tuple[Path, ImportReport]:
        given: Columns = {"items": good_items(), "users": good_users(), "events": good_events()} | changes
        paths = {
            name: write(tmp_path / f"{name}{suffix}", columns) if isinstance(columns, dict) else columns
            for name, columns in given.items()
        }
        return tmp_path / "store", import_features(schema, tmp_path / "store", **paths)

    return run


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_what_goes_in_comes_out(bring: Any, schema: InputSchema, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 13)
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 400)
    monkeypatch.setattr(events, "_CHUNK_EVENTS", 150)
    monkeypatch.setattr(events, "_MERGE_AT", 10)
    folder, report = bring(suffix)
    table, log = good_items(), good_events()
    absent = ~np.isin(log["item"], table["id"])
    assert report == ImportReport(40, 5, 500, {}, 2, int(absent.sum()))
    assert absent.any()
    store = FileStore(folder, schema)

    columns = {name: np.array(table[name]) for name in ("price", "genres", "year")}
    columns["scores"] = np.stack([table[f"scores_{place}"] for place in range(4)], 1).reshape(-1, 2, 2)
    ids = np.concatenate([table["id"], [999, -999]])
    rows, answers = np.zeros((42, schema.item_row.words), np.int32), np.zeros(42, np.uint8)
    store.items(ids, rows, answers, None)
    assert answers.tolist() == [1] * 40 + [2, 2]
    np.testing.assert_array_equal(rows[:40], pack_rows(schema.item_row, columns, 40))

    for user in (3, 5, 9, 70, 71):
        record = store.user(user, 1000, None)
        assert record is not None
        mine = np.flatnonzero(log["user"] == user)
        order = mine[np.argsort(log["timestamp"][mine], kind="stable")]
        np.testing.assert_array_equal(record.history.items, log["item"][order])
        np.testing.assert_array_equal(record.history.actions, log["action"][order])
        np.testing.assert_array_equal(record.history.timestamps, log["timestamp"][order])
        newest = store.user(user, 7, None)
        assert newest is not None
        np.testing.assert_array_equal(newest.history.items, log["item"][order][-7:])
    assert store.user(5, 1000, None).row[0] == 50  # type: ignore[union-attr]
    np.testing.assert_array_equal(store.user(70, 10, None).row, schema.user_row.default_row())  # type: ignore[union-attr]
    assert store.user(4, 10, None) is None


def test_a_folder_of_files_is_one_table(bring: Any, schema: InputSchema, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    table = good_items()
    for part in range(4):
        write(parts / f"{part}.parquet", {name: values[part * 10 : part * 10 + 10] for name, values in table.items()})
    folder, report = bring(items=parts)
    assert report.items == 40
    rows, answers = np.zeros((40, schema.item_row.words), np.int32), np.zeros(40, np.uint8)
    FileStore(folder, schema).items(table["id"], rows, answers, None)
    assert (answers == 1).all()
    write(parts / "4.parquet", {name: values[35:36] for name, values in table.items()})
    with pytest.raises(SchemaError, match=r"4.parquet, row 1, column 'id': id 242 is already in 3.parquet, row 6"):
        import_features(schema, tmp_path / "other", items=parts, users=tmp_path / "users.parquet")


def test_empty_values_become_defaults_and_are_counted(bring: Any, schema: InputSchema) -> None:
    items = good_items(3) | {"price": [1.0, None, None], "genres": [None, [1, 2, 3], [4, 5, 6]], "year": [None, 1, 2]}
    folder, report = bring(items=items)
    assert report.defaults == {"item.price": 2, "item.genres": 1, "item.year": 1}
    rows, answers = np.zeros((3, schema.item_row.words), np.int32), np.zeros(3, np.uint8)
    FileStore(folder, schema).items(items["id"], rows, answers, None)
    offsets, default = schema.item_row.offsets, schema.item_row.default_row()
    genres, price = slice(offsets["genres"], offsets["genres"] + 3), offsets["price"]
    np.testing.assert_array_equal(rows[0, genres], default[genres])
    np.testing.assert_array_equal(rows[1:, price], default[[price, price]])
    assert rows[2, genres].tolist() == [4, 5, 6]


def test_an_empty_value_in_csv_is_a_default_but_a_written_nan_is_not(bring: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", good_items(3))
    lines = path.read_text().splitlines()
    first = lines[1].split(",")
    path.write_text("\n".join([lines[0], ",".join([first[0], "", *first[2:]]), *lines[2:]]) + "\n")
    assert bring(items=path)[1].defaults == {"item.price": 1}
    path.write_text("\n".join([lines[0], lines[1], ",".join([first[0] + "9", "NaN", *first[2:]])]) + "\n")
    with pytest.raises(SchemaError, match=r"items.csv, row 2, column 'price': nan is not in"):
        bring_again(bring, items=path)


def bring_again(bring: Any, **changes: Any) -> Any:
    """Another import into the folder of an earlier one, after that is gone."""
    import shutil

    for folder in Path(changes["items"]).parent.glob("store"):
        shutil.rmtree(folder)
    return bring(**changes)


def changed(columns: Columns, name: str, row: int, value: Any) -> Columns:
    values = list(columns[name])
    values[row] = value
    return columns | {name: values}


WRONG: list[tuple[str, str, Columns, str]] = [
    ("items", "nan", changed(good_items(), "price", 7, float("nan")), r"row 8, column 'price': nan is not in the fini"),
    ("items", "infinity", changed(good_items(), "scores_2", 3, float("inf")), r"row 4, column 'scores_2': inf is not"),
    ("items", "vocabulary", changed(good_items(), "year", 39, 200), r"row 40, column 'year': 200 is not in \[0, 200\)"),
    ("items", "negative", changed(good_items(), "year", 0, -1), r"row 1, column 'year': -1 is not in"),
    ("items", "in-a-list", changed(good_items(), "genres", 4, [1, 20, 3]), r"row 5, column 'genres(_1)?': 20 is not"),
    ("items", "twice", changed(good_items(), "id", 20, 4), r"row 21, column 'id': id 4 is already in items.\w+, row 2"),
    ("items", "no-id", changed(good_items(), "id", 6, None), r"row 7, column 'id': the value is empty"),
    ("items", "missing", {k: v for k, v in good_items().items() if k != "year"}, r"column 'year' is missing; it has"),
    ("items", "unknown", good_items() | {"colour": [1] * 40}, r"column 'colour' is unknown to the model; expected are"),
    ("users", "vocabulary", changed(good_users(), "age", 1, 100), r"row 2, column 'age': 100 is not in \[0, 100\)"),
    ("events", "action", changed(good_events(), "action", 9, 4), r"row 10, column 'action': 4 is not in \[0, 4\)"),
    ("events", "time", changed(good_events(), "timestamp", 499, -1), r"row 500, column 'timestamp': -1 is negative"),
    ("events", "no-item", changed(good_events(), "item", 3, None), r"row 4, column 'item': the value is empty"),
    ("events", "missing", {k: v for k, v in good_events().items() if k != "user"}, r"column 'user' is missing"),
    ("events", "unknown", good_events() | {"rating": [1] * 500}, r"column 'rating' is unknown to the model"),
]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    ("table", "columns", "message"), [(t, c, m) for t, _, c, m in WRONG], ids=[w[1] for w in WRONG]
)
def test_what_is_wrong_is_named_and_nothing_is_left(
    bring: Any, tmp_path: Path, suffix: str, table: str, columns: Columns, message: str
) -> None:
    with pytest.raises(SchemaError, match=rf"{table}\{suffix}.*{message}"):
        bring(suffix, **{table: columns})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{name}{suffix}" for name in ("items", "users", "events")}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (changed(good_items(), "genres", 4, [1, 2]), r"row 5, column 'genres': 2 values where 3 are needed"),
        (changed(good_items(), "genres", 4, [1, None, 2]), r"row 5, column 'genres': a value within the list is empty"),
        (good_items() | {"genres": [1] * 40}, r"column 'genres': int64 where a list of 3 values is needed"),
        (good_items() | {"year": ["x"] * 40}, r"column 'year': string values where integers are needed"),
        (good_items() | {"year": [1.5] * 40}, r"column 'year': double values where integers are needed"),
        (good_items() | {"id": np.full(40, 2**63, np.uint64)}, r"row 1, column 'id': 9223372036854775808 does not fit"),
    ],
)
def test_what_only_parquet_can_get_wrong(bring: Any, columns: Columns, message: str) -> None:
    with pytest.raises(SchemaError, match=rf"items.parquet.*{message}"):
        bring(items=columns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item,action,timestamp\n1,2,3,4\n1,x,3,4\n", r"events.csv, row 2, column 'item': .*invalid value 'x'"),
        ("user,item,action,timestamp\n1,2,3,4\n1,2,3\n", r"events.csv, row 2: Expected 4 columns, got 3"),
        ("user,item,action,timestamp\n1,2,1.5,4\n", r"events.csv, row 1, column 'action': .*invalid value '1.5'"),
        ("", r"events.csv: columns must have unique names, got \[\]"),
        ("user,user,action,timestamp\n", r"events.csv: columns must have unique names"),
    ],
)
def test_what_only_csv_can_get_wrong(bring: Any, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text(text)
    with pytest.raises(SchemaError, match=message):
        bring(events=path)


def test_files_that_are_no_tables_are_named(bring: Any, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not enough")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("a.parquet", "a.parquet: "),
        ("b.json", "b.json: a table ends in .parquet or .csv"),
        ("c.csv", "c.csv is not CSV text"),
        ("empty", "must hold .parquet files or .csv files"),
        ("nothing.csv", "nothing.csv does not exist"),
    ]:
        with pytest.raises(SchemaError, match=message):
            bring(events=tmp_path / name)


def test_an_existing_store_is_replaced_only_when_asked(bring: Any, schema: InputSchema, tmp_path: Path) -> None:
    folder, _ = bring()
    with pytest.raises(SchemaError, match="store exists"):
        bring()
    opened = FileStore(folder, schema)
    paths = {name: tmp_path / f"{name}.parquet" for name in ("items", "users", "events")}
    write(paths["users"], changed(good_users(), "age", 0, 51))
    broken = write(tmp_path / "broken.parquet", good_users() | {"age": [1, 2, 300]})
    with pytest.raises(SchemaError, match="300 is not in"):
        import_features(schema, folder, overwrite=True, **(paths | {"users": broken}))
    assert FileStore(folder, schema).user(5, 0, None).row[0] == 50  # type: ignore[union-attr]
    import_features(schema, folder, overwrite=True, **paths)
    assert FileStore(folder, schema).user(5, 0, None).row[0] == 51  # type: ignore[union-attr]
    assert opened.user(5, 0, None).row[0] == 50  # type: ignore[union-attr]
    (tmp_path / "mine").mkdir()
    with pytest.raises(SchemaError, match="is not a feature store"):
        import_features(schema, tmp_path / "mine", overwrite=True, **paths)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_tables_may_be_absent_where_the_model_has_no_such_fields(schema_of: Any, tmp_path: Path) -> None:
    bare = schema_of(item=(), user=())
    log = write(tmp_path / "events.parquet", good_events())
    report = import_features(bare, tmp_path / "store", events=log)
    assert (report.items, report.users, report.events_without_item) == (0, 4, 500)
    store = FileStore(tmp_path / "store", bare)
    assert len(store.user(70, 1000, None).history.items) > 50  # type: ignore[union-attr]
    answers = np.zeros(2, np.uint8)
    store.items(np.array([1, 2], np.int64), np.zeros((2, 0), np.int32), answers, None)
    assert answers.tolist() == [2, 2]
    with pytest.raises(SchemaError, match=r"the model has user fields \['age'\]: give a table of users"):
        import_features(schema_of(item=(), user=(Field("age", "int32", vocabulary=9),)), tmp_path / "other", events=log)


def test_timestamps_of_parquet_become_seconds(bring: Any, schema: InputSchema) -> None:
    log = good_events(20)
    log["timestamp"] = pa.array(log["timestamp"] * 1000, pa.timestamp("ms"))
    folder, _ = bring(events=log)
    assert 1000 <= FileStore(folder, schema).user(3, 1, None).history.timestamps[0] < 1100  # type: ignore[union-attr]


def test_progress_goes_from_nothing_to_all(schema_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 100)
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 1000)
    for suffix in (".parquet", ".csv"):
        seen: list[tuple[str, int, int]] = []
        log = write(tmp_path / f"events{suffix}", good_events())
        import_features(
            schema_of(item=(), user=()),
            tmp_path / suffix,
            events=log,
            progress=lambda *step, seen=seen: seen.append(step),
        )
        assert {stage for stage, _, _ in seen} == {"events, first pass", "events, second pass"}
        for stage in {stage for stage, _, _ in seen}:
            done = [step[1] for step in seen if step[0] == stage]
            assert done == sorted(done)
            assert len(done) > 3
            assert done[-1] == log.stat().st_size
