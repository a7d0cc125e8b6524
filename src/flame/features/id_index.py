"""From ids to positions, a whole batch at a time: what the stores and the importer look items and users up with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flame.features.kernels.id_index import Slots, fill, find
from flame.records import Ids


class DuplicateId(Exception):
    """An id that an index was given twice; `first` and `second` are the positions."""

    def __init__(self, value: int, first: int, second: int) -> None:
        super().__init__(value)
        self.value = value
        self.first = first
        self.second = second


class IdIndex:
    """Positions of int64 ids. Never changes once built; any number of threads may read it."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots

    @staticmethod
    def slots_for(ids: int) -> int:
        """Slots of an index of so many ids: a power of two, at most half of it in use."""
        return 1 << max(3, (2 * ids - 1).bit_length())

    @classmethod
    def build(cls, ids: Ids) -> IdIndex:
        """The index in which `ids[i]` has position i. Raises `DuplicateId`."""
        index = cls(np.zeros((cls.slots_for(len(ids)), 2), np.int64))
        second = int(fill(index.slots, ids))
        if second >= 0:
            first = int(index.find(ids[second : second + 1])[0])
            raise DuplicateId(int(ids[second]), first, second)
        return index

    def find(self, ids: Ids) -> NDArray[np.int64]:
        """The positions `[n]` of `ids` `[n]`, -1 for an id that is not in the index."""
        positions = np.empty(len(ids), np.int64)
        find(self.slots, ids, positions)
        return positions

    def save(self, path: Path) -> None:
        """Writes the slots to a new file, as the file store reads them."""
        self.slots.tofile(path)
