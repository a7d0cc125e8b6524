"""Getting the data: cached, checked, and clear when it cannot be had."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from flame.examples.movielens import download


def without_index(monkeypatch: pytest.MonkeyPatch, links: Path) -> None:
    """Lets pip find packages in the folder `links` and nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    without_index(monkeypatch, tmp_path / "empty")
    with pytest.raises(download.DataUnavailable, match=r"(?s)put recbole.* by hand.*No matching distribution"):
        download.fetch(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_file_with_another_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / download.WHEEL).write_bytes(b"something else")
    with pytest.raises(download.DataUnavailable, match=hashlib.sha256(b"something else").hexdigest()):
        download.fetch(tmp_path)


def test_what_is_downloaded_is_checked_too(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / download.WHEEL).write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(links / download.WHEEL, "a") as archive:
        archive.writestr("recbole-1.2.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n")
        archive.writestr("recbole-1.2.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    without_index(monkeypatch, links)
    with pytest.raises(download.DataUnavailable, match="SHA-256"):
        download.fetch(tmp_path / "cache")


def test_a_cached_wheel_is_taken_without_pip(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = wheel.read_bytes()
    (tmp_path / download.WHEEL).write_bytes(content)
    monkeypatch.setattr(download, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(download.sys, "executable", "/nonexistent")
    assert download.fetch(tmp_path) == tmp_path / download.WHEEL


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "flame" / "movielens"
