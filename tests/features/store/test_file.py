"""The file store: a folder that is damaged or made for another model is never served."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from flame.config import FeaturesConfig
from flame.errors import ConfigError, FeatureError, SchemaError, StoreUnavailable
from flame.features.importer import import_features
from flame.features.store import file as file_module
from flame.features.store import open_store
from flame.features.store.file import FileStore
from flame.features.store.format import FILES
from flame.features.store.memory import MemoryStore
from flame.schema import Field, InputSchema


@pytest.fixture
def small(schema_of: Any) -> InputSchema:
    return schema_of(item=(Field("year", "int32", vocabulary=50),), user=())


@pytest.fixture
def folder(small: InputSchema, tmp_path: Path) -> Path:
    items = tmp_path / "items.parquet"
    pa_parquet.write_table(pa.table({"id": range(100), "year": [i % 50 for i in range(100)]}), items)
    log = tmp_path / "events.parquet"
    rows = {"user": [1] * 30 + [2] * 10, "item": range(40), "action": [1] * 40, "timestamp": range(40)}
    pa_parquet.write_table(pa.table(rows), log)
    import_features(small, tmp_path / "store", items=items, events=log)
    return tmp_path / "store"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "longer", "flipped", "gone"])
def test_a_damaged_file_is_named(folder: Path, small: InputSchema, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    if not content and damage in ("truncated", "flipped"):
        pytest.skip("this model has no such words")
    if damage == "gone":
        path.unlink()
    elif damage == "longer":
        path.write_bytes(content + b"\0")
    elif damage == "truncated":
        path.write_bytes(content[:-8])
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreUnavailable, match=rf"{name}.*import it again"):
        FileStore(folder, small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"items": 5}, r"items.slots has \d+ bytes where the manifest's counts need"),
        ({"fingerprint": "0"}, "contradicts itself"),
        ({"files": {}}, "items.slots is not in the manifest"),
        ({"extra": 1}, "manifest.json is damaged"),
    ],
)
def test_a_changed_manifest_is_refused(folder: Path, small: InputSchema, change: dict[str, Any], message: str) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreUnavailable, match=message):
        FileStore(folder, small)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"format": 1}', b"\xff\xfe"])
def test_a_manifest_that_is_none_is_refused(folder: Path, small: InputSchema, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(StoreUnavailable, match=r"manifest\.json"):
        FileStore(folder, small)


def test_a_folder_without_a_manifest_is_no_store(small: InputSchema, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="flame features import"):
        FileStore(tmp_path, small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"item": (Field("year", "int32", vocabulary=51),)},
            r"field 'year' is int32\[\] below 50, not int32\[\] below 51",
        ),
        ({"item": ()}, "item field 'year' only in the store"),
        ({"user": (Field("age", "float32"),)}, "user field 'age' only in the model"),
        ({"actions": 9}, "4 actions, not 9"),
    ],
)
def test_a_store_of_another_schema_says_what_differs(
    folder: Path, schema_of: Any, change: dict[str, Any], message: str
) -> None:
    other = schema_of(**({"item": (Field("year", "int32", vocabulary=50),), "user": ()} | change))
    with pytest.raises(SchemaError, match=message):
        FileStore(folder, other)


def test_what_does_not_change_the_bytes_may_change(folder: Path, schema_of: Any) -> None:
    item = (Field("year", "int32", vocabulary=50, default=3),)
    FileStore(folder, schema_of(item=item, user=(), max_history=7, scenarios=1)).close()


def test_a_late_look_up_answers_what_it_has(folder: Path, small: InputSchema, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "_PIECE", 10)
    rows, answers = np.zeros((100, 1), np.int32), np.zeros(100, np.uint8)
    FileStore(folder, small).items(np.arange(100), rows, answers, time.monotonic() - 1)
    assert answers.tolist() == [1] * 10 + [0] * 90


def test_a_closed_store_says_so(folder: Path, small: InputSchema) -> None:
    store = FileStore(folder, small)
    kept = store.user(1, 100, None)
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.user(1, 100, None)
    with pytest.raises(StoreUnavailable, match="closed"):
        store.items(np.zeros(1, np.int64), np.zeros((1, 1), np.int32), np.zeros(1, np.uint8), None)
    assert kept is not None
    assert kept.history.items.tolist() == list(range(30)), "a record outlives the store"


def test_the_store_is_picked_by_configuration(folder: Path, small: InputSchema, tmp_path: Path) -> None:
    assert isinstance(open_store(FeaturesConfig(store="memory"), small, None), MemoryStore)
    assert isinstance(open_store(FeaturesConfig(path=str(folder)), small, None), FileStore)
    assert isinstance(open_store(FeaturesConfig(), small, tmp_path), MemoryStore)
    shutil.copytree(folder, tmp_path / "model" / "features")
    assert isinstance(open_store(FeaturesConfig(), small, tmp_path / "model"), FileStore)
    with pytest.raises(ConfigError, match="nowhere' is not a folder"):
        open_store(FeaturesConfig(path=str(tmp_path / "nowhere")), small, None)
    with pytest.raises(FeatureError):
        open_store(FeaturesConfig(path=str(tmp_path)), small, None)
