"""How many cores there are to use, and what is told of a graphics card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flame.engine import machine
from flame.engine.machine import container_limits, graphics_card, usable_cores


def test_every_group_above_may_limit(tmp_path: Path) -> None:
    inner = tmp_path / "pods" / "one" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "pods" / "cpu.max").write_text("400000 100000\n")
    (tmp_path / "pods" / "one" / "cpu.max").write_text("max 100000\n")
    (inner / "cpu.max").write_text("150000 100000\n")
    assert list(container_limits(tmp_path, "/pods/one/inner")) == [2, 4]
    assert list(container_limits(tmp_path, "/pods/one")) == [4]


def test_what_cannot_be_read_limits_nothing(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("")
    assert list(container_limits(tmp_path, "/../elsewhere")) == []
    assert list(container_limits(tmp_path / "nothing", "/")) == []


def test_threads_keep_within_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "container_limits", lambda *_: iter(()))
    free = usable_cores()
    monkeypatch.setattr(machine, "container_limits", lambda *_: iter((1, free + 5)))
    assert usable_cores() == 1


def test_a_graphics_card_is_told_with_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="A GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "version")
    assert graphics_card("cuda") == {"gpu": "A GPU", "capability": "9.0", "driver": ""}
    (tmp_path / "version").write_text("Module 580.1\nGCC version: 13\n")
    assert graphics_card("cuda:1") == {"gpu": "A GPU", "capability": "9.0", "driver": "Module 580.1"}
