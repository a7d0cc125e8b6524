#!/usr/bin/env python3
"""Stands in for the C++ compiler: what one run of the tests has compiled is copied when it is asked for again.

    FLAME_TEST_CXX=c++ FLAME_TEST_LIBRARIES=FOLDER compile_once.py [OPTION]... SOURCE -o LIBRARY

Many tests, and the servers that they start, build engines of the same small models, and each build takes the compiler
ten seconds. All processes that are given the same folder compile a library once; a refusal is never kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

COMPILER, FOLDER = "FLAME_TEST_CXX", "FLAME_TEST_LIBRARIES"


def main() -> int:
    """The command line; the exit status is the compiler's."""
    command, arguments = shlex.split(os.environ[COMPILER]), sys.argv[1:]
    if "-o" not in arguments:
        return subprocess.call([*command, *arguments])
    place = arguments.index("-o")
    library, options = arguments[place + 1], arguments[:place] + arguments[place + 2 :]
    kept = Path(os.environ[FOLDER], digest(command, options))
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            new = kept.with_suffix(".new")
            if status := subprocess.call([*command, *options, "-o", str(new)]):
                return status
            new.replace(kept)
    shutil.copy(kept, library)
    return 0


def digest(command: Sequence[str], options: Sequence[str]) -> str:
    """Of the command and of all files it may read but the system's; where these lie is no part of it."""
    found = hashlib.sha256(repr(command).encode())
    for option in options:
        path = Path(option.removeprefix("-I"))
        for part in parts(path) if path.is_absolute() else [option.encode()]:
            found.update(hashlib.sha256(part).digest())
    return found.hexdigest()


def parts(path: Path) -> Iterator[bytes]:
    """A source's name and all that lies beside it, or all that lies in a folder."""
    if path.is_file():
        yield path.name.encode()
        path = path.parent
    for file in sorted(path.iterdir()):
        if file.is_file():
            yield file.name.encode()
            yield file.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
