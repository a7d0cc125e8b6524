"""NUMA nodes and cores of this machine, and binding a thread to the cores of one node.

Reads `/sys` only. On a machine with one node everything here does nothing, and says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

_log = logging.getLogger(__name__)

_SYSTEM = Path("/sys")

Nodes = Mapping[int, frozenset[int]]


def nodes(system: Path = _SYSTEM) -> Nodes:
    """The cores of each node that this process may use, by node; empty if the system does not tell."""
    allowed = os.sched_getaffinity(0)
    found = {}
    for folder in sorted((system / "devices/system/node").glob("node[0-9]*")):
        try:
            cores = parse_cores((folder / "cpulist").read_text())
        except (OSError, ValueError) as error:
            _log.warning("cannot read the cores of NUMA %s: %s", folder.name, error)
            continue
        if usable := frozenset(cores & allowed):
            found[int(folder.name.removeprefix("node"))] = usable
    return found


def parse_cores(text: str) -> set[int]:
    """`"0-3,8"` as `{0, 1, 2, 3, 8}`."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cores.update(range(int(first), int(last or first) + 1))
    return cores


def choose_node(available: Nodes, pci_address: str | None = None, system: Path = _SYSTEM) -> int | None:
    """The node of a PCI device (`0000:17:00.0`) if it is known and usable, else the one with the most cores.

    None on a machine with fewer than two nodes: there is nothing to choose.
    """
    if len(available) < 2:
        return None
    if pci_address is not None:
        try:
            node = int((system / "bus/pci/devices" / pci_address.lower() / "numa_node").read_text())
        except (OSError, ValueError):
            _log.warning("cannot read the NUMA node of PCI device %s", pci_address)
        else:
            if node in available:
                return node
    return max(available, key=lambda node: (len(available[node]), -node))


def bind_current_thread(node: int | None, available: Nodes) -> bool:
    """Lets the calling thread run on the cores of `node` only; with None, does nothing. Returns whether it bound."""
    if node is None:
        _log.debug("one NUMA node: threads are not bound")
        return False
    os.sched_setaffinity(0, available[node])
    _log.debug("thread bound to NUMA node %d, cores %s", node, sorted(available[node]))
    return True
