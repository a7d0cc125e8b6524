"""Examples as packed buffers (`flame.layout`): what training reads is what an engine reads when it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flame.examples.movielens.dataset import Ints
from flame.layout import (
    CANDIDATE_ITEM,
    CANDIDATE_ROW,
    CANDIDATES,
    EVENT_ACTION,
    EVENT_AGE,
    EVENT_ITEM,
    EVENT_ROW,
    LENGTHS,
    PackedLayout,
    RecordLayout,
    Words,
)
from flame.records import History
from flame.schema import InputSchema, SequenceSpec


@dataclass(frozen=True, slots=True)
class Example:
    """One user at one point of time.

    `labels` `[candidates, tasks]`; `item_rows` `[movies, words]` by id - 1, as this example may know them. The item
    table takes the ids themselves, but row 0 for a movie in `unknown`.
    """

    history: History
    candidates: Ints
    labels: NDArray[np.float32]
    item_rows: Words
    user_row: Words
    unknown: Ints

    def table_rows(self, items: Ints) -> Ints:
        """Rows of the model's item table."""
        return np.where(np.isin(items, self.unknown), 0, items)


def pack(examples: Sequence[Example], schema: InputSchema) -> tuple[Words, PackedLayout]:
    """One launch that holds all examples; unused slots are zero."""
    events = schema.sequence_capacity(max(len(example.history.items) for example in examples))
    candidates = max(len(example.candidates) for example in examples)
    layout = PackedLayout(RecordLayout.of(schema), len(examples), events, candidates)
    words = np.zeros(layout.words, np.int32)
    header, event_slots, candidate_slots = layout.views(words)
    start, end = layout.record.user_start, layout.record.context_start
    for user, example in enumerate(examples):
        count = len(example.candidates)
        header[user, CANDIDATES] = count
        header[user, start:end] = example.user_row
        candidate_slots[user, :count, CANDIDATE_ITEM] = example.table_rows(example.candidates)
        candidate_slots[user, :count, CANDIDATE_ROW:] = example.item_rows[example.candidates - 1]
        for index, sequence in enumerate(schema.sequences):
            header[user, LENGTHS + index] = _pack_events(event_slots[user, index], example, sequence, schema)
    return words, layout


def _pack_events(slots: Words, example: Example, sequence: SequenceSpec, schema: InputSchema) -> int:
    """Writes the events of one sequence into `slots` `[events, words]` and returns how many they are."""
    history = example.history
    kept = np.arange(len(history.items))[-schema.max_history :]
    if sequence.kind == "actions":
        kept = kept[np.isin(history.actions[kept], sequence.actions)]
    kept = kept[-sequence.capacity(schema.max_history) :]
    items = history.items[kept]
    used = slots[: len(kept)]
    used[:, EVENT_ITEM] = example.table_rows(items)
    used[:, EVENT_ACTION] = history.actions[kept]
    used[:, EVENT_AGE] = history.timestamps[-1] - history.timestamps[kept]
    used[:, EVENT_ROW:] = example.item_rows[items - 1]
    return len(kept)
