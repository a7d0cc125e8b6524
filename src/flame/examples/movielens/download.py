"""Gets MovieLens-100K and caches it: the data may not be redistributed, so no part of it lies in this repository.

The PyPI package `recbole` carries the data set inside its wheel. The wheel is fetched by pip, so the indexes and
proxies of the user's own pip set-up apply, and it is only read as a zip file: never installed, never imported.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from flame.errors import FlameError

REQUIREMENT = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_TIMEOUT_S = 300


class DataUnavailable(FlameError):
    """The data set is neither in the cache nor can it be downloaded, or it is not the expected file."""

    kind = "data_unavailable"


def cache_folder() -> Path:
    """Where the wheel and what is prepared from it are kept: a folder of the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "flame" / "movielens"


def fetch(folder: Path | None = None) -> Path:
    """The path of the wheel in `folder` (default: `cache_folder()`), downloaded by the first call.

    Raises `DataUnavailable` when the download fails or the file has another SHA-256 than the one pinned here.
    """
    folder = folder or cache_folder()
    wheel = folder / WHEEL
    if not wheel.exists():
        _download(folder)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise DataUnavailable(f"{wheel} has SHA-256 {found}, expected {SHA256}; delete it and try again")
    return wheel


def _download(folder: Path) -> None:
    """Downloads into a temporary folder beside the target, so that the wheel appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", scratch, REQUIREMENT]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            reason = done.stderr.strip()
        except subprocess.TimeoutExpired:
            reason = f"no answer within {_TIMEOUT_S} s"
        found = Path(scratch) / WHEEL
        if not found.exists():
            raise DataUnavailable(
                f"MovieLens-100K could not be downloaded: `pip download --no-deps {REQUIREMENT}` failed. "
                f"Check the network, or put {WHEEL} into {folder} by hand. pip said: {reason or 'nothing'}"
            )
        found.replace(folder / WHEEL)
