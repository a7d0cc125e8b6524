"""Compiled kernels as files: NAME.cubin each, and `kernels.json` with what a launch of them needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from flame.engine.kernels.kernel import Cubin

MANIFEST = "kernels.json"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    entry: str
    threads: int
    shared: int
    signature: tuple[str, ...]
    hidden: int
    dependent: bool


def write(folder: Path, cubins: Iterable[Cubin], manifest: str = MANIFEST) -> None:
    """Puts all `cubins` into `folder`, under names that are their kernels'."""
    entries = []
    for cubin in cubins:
        assert "/" not in cubin.name, f"the kernel name {cubin.name!r} cannot name a file"
        (folder / f"{cubin.name}.cubin").write_bytes(cubin.code)
        entries.append(_entry(cubin))
    (folder / manifest).write_bytes(msgspec.json.format(msgspec.json.encode(entries)) + b"\n")


def read(folder: Path, manifest: str = MANIFEST) -> list[Cubin]:
    """What `write` put into `folder`."""
    entries = msgspec.json.decode((folder / manifest).read_bytes(), type=list[_Entry])
    return [
        Cubin(
            name=entry.name,
            entry=entry.entry,
            code=(folder / f"{entry.name}.cubin").read_bytes(),
            threads=entry.threads,
            shared=entry.shared,
            signature=entry.signature,
            hidden=entry.hidden,
            dependent=entry.dependent,
        )
        for entry in entries
    ]


def _entry(cubin: Cubin) -> _Entry:
    return _Entry(**{name: getattr(cubin, name) for name in _Entry.__struct_fields__})
