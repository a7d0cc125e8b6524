"""The folder of a file store: which files it has, and the manifest that says whether they are whole and whose.

    manifest.json           format, schema, counts, size and xxh3-128 of every file
    items.slots             int64 [n, 2]            index from item id to row, see `kernels.id_index`
    items.rows              int32 [items, words]    rows in the schema's layout
    users.slots, users.rows                         the same for users
    users.offsets           int64 [users + 1]       where the events of each user begin
    events.items, events.actions, events.timestamps int64 [events], by user, then by time

Numbers are little-endian. An importer writes a new folder and renames it; a folder in use is never changed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import xxhash

from flame.errors import StoreUnavailable
from flame.schema import Field, InputSchema

FORMAT = 1
MANIFEST = "manifest.json"
FILES = (
    "items.slots",
    "items.rows",
    "users.slots",
    "users.rows",
    "users.offsets",
    "events.items",
    "events.actions",
    "events.timestamps",
)

_PIECE = 16 * 2**20


class FileState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and checksum of one file."""

    bytes: int
    xxh3_128: str


class StoredSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of an input schema the bytes of a store depend on; defaults, limits and sequences may change freely."""

    item: tuple[Field, ...]
    user: tuple[Field, ...]
    actions: int

    @classmethod
    def of(cls, schema: InputSchema) -> StoredSchema:
        """That part of `schema`, fields in the order of the row."""
        return cls(_bare(schema.item_row.fields), _bare(schema.user_row.fields), schema.actions)

    @property
    def fingerprint(self) -> str:
        return xxhash.xxh3_128_hexdigest(msgspec.json.encode(self))

    def differences(self, other: StoredSchema) -> list[str]:
        """What differs in `other`, in words."""
        found = []
        for part in ("item", "user"):
            own = {field.name: field for field in getattr(self, part)}
            its = {field.name: field for field in getattr(other, part)}
            found += [f"{part} field {name!r} only in the store" for name in own if name not in its]
            found += [f"{part} field {name!r} only in the model" for name in its if name not in own]
            changed = [name for name in own if name in its and own[name] != its[name]]
            found += [f"{part} field {name!r} is {_text(own[name])}, not {_text(its[name])}" for name in changed]
        if self.actions != other.actions:
            found.append(f"{self.actions} actions, not {other.actions}")
        return found or ["the order of the fields"]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of `manifest.json`."""

    format: int
    fingerprint: str
    input: StoredSchema
    items: int
    users: int
    events: int
    files: dict[str, FileState]

    @classmethod
    def describe(cls, folder: Path, schema: InputSchema, items: int, users: int, events: int) -> Manifest:
        """The manifest of a folder whose files are complete."""
        stored = StoredSchema.of(schema)
        files = {name: file_state(folder / name) for name in FILES}
        return cls(FORMAT, stored.fingerprint, stored, items, users, events, files)

    def write(self, folder: Path) -> None:
        """Writes the manifest, which makes the folder a store."""
        (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store. Raises `StoreUnavailable` if there is none that this version can read."""
    path = folder / MANIFEST
    if sys.byteorder != "little":
        raise StoreUnavailable("the file store needs a little-endian machine")
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=Mapping).get("format")
        if version != FORMAT:
            raise StoreUnavailable(
                f"feature store {folder.name!r} has format {version}, this version reads {FORMAT}: import it again"
            )
        return msgspec.json.decode(content, type=Manifest)
    except OSError as error:
        raise StoreUnavailable(
            f"feature store {folder.name!r} has no readable {MANIFEST} ({error.strerror}); "
            "`flame features import` makes one"
        ) from error
    except msgspec.DecodeError as error:
        raise StoreUnavailable(
            f"feature store {folder.name!r}: {MANIFEST} is damaged ({error}): import it again"
        ) from error


def file_state(path: Path) -> FileState:
    """Size and checksum of a file, read in pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return FileState(path.stat().st_size, digest.hexdigest())


def _bare(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    return tuple(msgspec.structs.replace(field, default=0.0) for field in fields)


def _text(field: Field) -> str:
    vocabulary = "" if field.vocabulary is None else f" below {field.vocabulary}"
    return f"{field.dtype}{list(field.shape)}{vocabulary}"
