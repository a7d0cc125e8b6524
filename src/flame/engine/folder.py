"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` to write into; it takes that name when the block ends without an error.

    Entries of an existing `folder` that the block did not write are kept. Whoever looks sees the old or the new
    contents, or for the moment between two renames no folder, and never a part of the new.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        _keep_others(folder, new)
        _swap(folder, new, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _keep_others(folder: Path, new: Path) -> None:
    """Hard links of the old folder's other files, which may be large."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        target = new / entry.name
        if target.exists():
            continue
        if entry.is_dir():
            shutil.copytree(entry, target, copy_function=_link)
        else:
            _link(entry, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _swap(folder: Path, new: Path, old: Path) -> None:
    """Puts `new` in the place of `folder`, which goes to `old`; on failure it comes back."""
    there = folder.is_dir()
    if there:
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if there:
            old.rename(folder)
        raise
