"""The embedded feature store: a folder of memory-mapped arrays that `flame features import` makes.

A look-up is two passes over mapped memory, without a copy and without a lock; pages that were read lately are in the
page cache of the system and shared by all processes of a machine.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.errors import SchemaError, StoreUnavailable
from flame.features.id_index import IdIndex
from flame.features.kernels.id_index import take
from flame.features.store.base import ABSENT, FOUND, Answers, FeatureStore, UserRecord
from flame.features.store.format import FILES, FileState, Manifest, StoredSchema, file_state, read_manifest
from flame.layout import Words
from flame.records import History, Ids
from flame.schema import InputSchema

_PIECE = 4096
"""Ids looked up between two glances at the clock."""


@dataclass(frozen=True, slots=True)
class _Maps:
    """The mapped arrays of a folder, see `format`."""

    item_index: IdIndex
    item_rows: Words
    user_index: IdIndex
    user_rows: Words
    user_offsets: Ids
    event_items: Ids
    event_actions: Ids
    event_timestamps: Ids


class FileStore(FeatureStore):
    """A store folder, opened and checked: every file is read once and compared with its checksum.

    Raises `StoreUnavailable` for a folder that is not there or damaged, `SchemaError` for one that was imported with
    other fields than those of `schema`. Replacing the folder by a rename does not disturb a store that is open.
    """

    def __init__(self, folder: Path, schema: InputSchema) -> None:
        manifest = read_manifest(folder)
        _check_schema(folder, manifest, schema)
        for name in FILES:
            _check_file(folder, name, manifest.files.get(name))
        self.manifest = manifest
        self._name = folder.name
        self._maps: _Maps | None = _map_folder(folder, manifest, schema)
        self._warm_up(schema)

    def items(self, ids: Ids, rows: Words, answers: Answers, deadline: float | None) -> None:
        """See `FeatureStore.items`."""
        maps = self._open_maps()
        assert rows.shape == (len(ids), maps.item_rows.shape[1]), "the store has rows of another schema"
        for start in range(0, len(ids), _PIECE):
            piece = slice(start, start + _PIECE)
            if start and deadline is not None and time.monotonic() >= deadline:
                return
            take(maps.item_rows, maps.item_index.find(ids[piece]), rows[piece], answers[piece], FOUND, ABSENT)

    def user(self, user: int, events: int, deadline: float | None) -> UserRecord | None:
        """See `FeatureStore.user`; the arrays are views of the mapped files."""
        maps = self._open_maps()
        position = int(maps.user_index.find(np.array([user], np.int64))[0])
        if position < 0:
            return None
        end = int(maps.user_offsets[position + 1])
        kept = slice(max(int(maps.user_offsets[position]), end - events), end)
        history = History(maps.event_items[kept], maps.event_actions[kept], maps.event_timestamps[kept])
        return UserRecord(maps.user_rows[position], history)

    def close(self) -> None:
        """See `FeatureStore.close`; memory is unmapped when the last view of it is gone."""
        self._maps = None

    def _warm_up(self, schema: InputSchema) -> None:
        """Compiles the kernels for mapped arrays, so that no request waits for it."""
        one = np.zeros(1, np.int64)
        self.items(one, np.zeros((1, schema.item_row.words), np.int32), np.zeros(1, np.uint8), None)
        self.user(0, 0, None)

    def _open_maps(self) -> _Maps:
        maps = self._maps
        if maps is None:
            raise StoreUnavailable(f"feature store {self._name!r} is closed")
        return maps


def _check_schema(folder: Path, manifest: Manifest, schema: InputSchema) -> None:
    wanted = StoredSchema.of(schema)
    if manifest.fingerprint != manifest.input.fingerprint:
        raise StoreUnavailable(f"feature store {folder.name!r}: the manifest contradicts itself: import it again")
    if manifest.fingerprint != wanted.fingerprint:
        raise SchemaError(
            f"feature store {folder.name!r} was imported for another schema: "
            f"{'; '.join(manifest.input.differences(wanted))}. Import it again with this model"
        )


def _check_file(folder: Path, name: str, state: FileState | None) -> None:
    where = f"feature store {folder.name!r}: {name}"
    if state is None:
        raise StoreUnavailable(f"{where} is not in the manifest: import it again")
    try:
        size = (folder / name).stat().st_size
        if size != state.bytes:
            raise StoreUnavailable(f"{where} has {size} bytes instead of {state.bytes}: import it again")
        found = file_state(folder / name)
    except OSError as error:
        raise StoreUnavailable(f"{where}: {error.strerror}: import it again") from error
    if found != state:
        raise StoreUnavailable(f"{where} is damaged (checksum): import it again")


def _map_folder(folder: Path, manifest: Manifest, schema: InputSchema) -> _Maps:
    """The arrays of a folder whose files have the sizes that the manifest says. Raises `StoreUnavailable`."""
    events = (manifest.events,)

    def mapped(name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
        return _map_file(folder / name, dtype, shape)

    return _Maps(
        IdIndex(mapped("items.slots", np.int64, (IdIndex.slots_for(manifest.items), 2))),
        mapped("items.rows", np.int32, (manifest.items, schema.item_row.words)),
        IdIndex(mapped("users.slots", np.int64, (IdIndex.slots_for(manifest.users), 2))),
        mapped("users.rows", np.int32, (manifest.users, schema.user_row.words)),
        mapped("users.offsets", np.int64, (manifest.users + 1,)),
        mapped("events.items", np.int64, events),
        mapped("events.actions", np.int64, events),
        mapped("events.timestamps", np.int64, events),
    )


def _map_file(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """The file as a read-only array of `shape`."""
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size != expected:
            raise StoreUnavailable(
                f"{path.parent.name}/{path.name} has {size} bytes where the manifest's counts need "
                f"{expected}: import it again"
            )
        if not size:
            return np.zeros(shape, dtype)
        area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(area, dtype).reshape(shape)
