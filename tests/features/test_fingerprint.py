"""The fingerprint changes with everything an encoded history depends on, and with nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flame.features.fingerprint import fingerprint
from flame.layout import PackedLayout, RecordLayout
from flame.schema import InputSchema

LENGTHS = (5, 3, 0)


@pytest.fixture
def packed(schema: InputSchema) -> tuple[Any, PackedLayout]:
    layout = PackedLayout(RecordLayout.of(schema), 1, 8, 4)
    words = np.random.default_rng(0).integers(0, 1000, layout.words).astype(np.int32)
    return words, layout


def test_every_word_that_matters_matters(packed: tuple[Any, PackedLayout]) -> None:
    words, layout = packed
    views = layout.views(words)
    before = fingerprint(views, LENGTHS)
    assert len(before) == 16
    for sequence, length in enumerate(LENGTHS):
        for slot in range(length):
            for word in range(layout.record.event_words):
                views.events[0, sequence, slot, word] ^= 1
                assert fingerprint(views, LENGTHS) != before
                views.events[0, sequence, slot, word] ^= 1
    views.header[0, 0] ^= 1
    assert fingerprint(views, LENGTHS) != before
    views.header[0, 0] ^= 1
    assert fingerprint(views, LENGTHS) == before


def test_nothing_else_matters(packed: tuple[Any, PackedLayout]) -> None:
    words, layout = packed
    views = layout.views(words)
    before = fingerprint(views, LENGTHS)
    views.candidates[:] = -1
    views.header[0, 1] = 99
    views.header[0, layout.record.user_start :] = -1
    for sequence, length in enumerate(LENGTHS):
        views.events[0, sequence, length:] = -1
    assert fingerprint(views, LENGTHS) == before


def test_events_belong_to_their_sequence(packed: tuple[Any, PackedLayout]) -> None:
    words, layout = packed
    views = layout.views(words)
    views.events[:] = 7
    seen = {
        fingerprint(views, lengths) for lengths in [(5, 3, 0), (3, 5, 0), (5, 0, 3), (8, 0, 0), (0, 0, 8), (0, 0, 0)]
    }
    assert len(seen) == 6


def test_the_size_of_the_buffer_does_not_matter(schema: InputSchema) -> None:
    found = set()
    for events in (5, 8, 64):
        layout = PackedLayout(RecordLayout.of(schema), 1, events, 4)
        views = layout.views(np.zeros(layout.words, np.int32))
        for sequence, length in enumerate(LENGTHS):
            views.events[0, sequence, :length] = sequence + 1
        found.add(fingerprint(views, LENGTHS))
    assert len(found) == 1
