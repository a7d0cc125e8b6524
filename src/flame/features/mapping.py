"""From item ids to rows of the model's item table, the same in training and in serving."""

from __future__ import annotations

import numpy as np

from flame.features.kernels import assemble
from flame.layout import Words
from flame.records import Ids
from flame.schema import ItemTable


def table_rows(ids: Ids, table: ItemTable) -> Words:
    """The row `[n]` of the item table for each of `ids` `[n]`.

    `direct`: the id itself in `[1, vocabulary)`, else 0. `hash`: `1 + mix64(id) % (vocabulary - 1)` for positive ids
    (`kernels.hashing.mix64`), else 0.
    """
    rows = np.empty(len(ids), np.int32)
    assemble.table_rows(np.array(ids, np.int64), table.vocabulary, table.mapping == "hash", rows)
    return rows
