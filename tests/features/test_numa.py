"""NUMA nodes from a written-down machine, and a thread bound to one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from flame.features import numa


def machine(root: Path, nodes: dict[int, str], pci: dict[str, str] | None = None) -> Path:
    for node, cores in nodes.items():
        folder = root / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cores + "\n")
    for address, node_text in (pci or {}).items():
        folder = root / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(node_text + "\n")
    return root


def test_core_lists_are_read() -> None:
    assert numa.parse_cores("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert numa.parse_cores("\n") == set()


def test_nodes_hold_only_cores_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 9})
    root = machine(tmp_path, {0: "0-3", 1: "4-7", 10: "8-11"})
    assert numa.nodes(root) == {0: {1, 2}, 10: {9}}


def test_a_broken_node_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    root = machine(tmp_path, {0: "0-3", 1: "what"})
    assert numa.nodes(root) == {0: {0, 1, 2, 3}}
    assert numa.nodes(tmp_path / "nothing") == {}


def test_the_node_of_the_device_is_chosen_where_it_is_known(tmp_path: Path) -> None:
    available = {0: frozenset({0, 1}), 1: frozenset({2, 3, 4})}
    root = machine(tmp_path, {}, {"0000:17:00.0": "0", "0000:18:00.0": "-1"})
    assert numa.choose_node(available, "0000:17:00.0", root) == 0
    assert numa.choose_node(available, "0000:18:00.0", root) == 1
    assert numa.choose_node(available, "0000:99:00.0", root) == 1
    assert numa.choose_node(available) == 1
    assert numa.choose_node({0: frozenset({0, 1}), 1: frozenset({2, 3})}) == 0
    assert numa.choose_node({0: frozenset({0})}) is None
    assert numa.choose_node({}) is None


def test_only_the_calling_thread_is_bound() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    seen: list[object] = []

    def run() -> None:
        seen.append(numa.bind_current_thread(None, {}))
        seen.append(os.sched_getaffinity(0))
        seen.append(numa.bind_current_thread(3, {3: frozenset({core})}))
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False, before, True, {core}]
    assert os.sched_getaffinity(0) == before
