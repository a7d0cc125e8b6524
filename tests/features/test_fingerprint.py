"""The fingerprint changes with everything an encoded history depends on, and with nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from flame.features.fingerprint import fingerprint, prefix_fingerprints
from flame.layout import EVENT_AGE, SCENARIO, PackedLayout, RecordLayout
from flame.schema import InputSchema, SequenceSpec

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


@pytest.fixture
def growing(schema: InputSchema) -> tuple[Any, PackedLayout]:
    """A history of one sequence, ages falling to 0."""
    one = msgspec.structs.replace(schema, sequences=(SequenceSpec("all"),), positions="oldest")
    layout = PackedLayout(RecordLayout.of(one), 1, 50, 4)
    words = np.random.default_rng(0).integers(0, 1000, layout.words).astype(np.int32)
    layout.views(words).events[0, 0, :, EVENT_AGE] = np.arange(50, 0, -1) ** 2
    return words, layout


def newest(words: Any, layout: PackedLayout, length: int) -> Any:
    """The history when it had its oldest `length` events only; behind them, garbage."""
    views = layout.views(words.copy())
    views.events[0, 0, :length, EVENT_AGE] -= views.events[0, 0, length - 1, EVENT_AGE]
    views.events[0, 0, length:] = -1
    return views


def test_a_prefix_has_the_same_fingerprint_whatever_follows(growing: tuple[Any, PackedLayout]) -> None:
    words, layout = growing
    whole = prefix_fingerprints(newest(words, layout, 50), 50, 8)
    assert len(set(whole)) == len(whole) == 6
    for length in range(1, 50):
        assert prefix_fingerprints(newest(words, layout, length), length, 8) == whole[: length // 8]
    views = newest(words, layout, 50)
    views.header[0, 1:] = -1
    views.candidates[:] = -1
    assert prefix_fingerprints(views, 50, 8) == whole
    assert prefix_fingerprints(views, 0, 8) == ()


def test_every_word_of_a_prefix_matters_from_there_on(growing: tuple[Any, PackedLayout]) -> None:
    words, layout = growing
    views = newest(words, layout, 50)
    before = views.events.copy()
    whole = prefix_fingerprints(views, 50, 8)
    for slot in range(48):
        for word in range(layout.record.event_words):
            if (slot, word) == (0, EVENT_AGE):
                continue  # the gap behind the first event tells of it
            views.events[0, 0, slot, word] += 1
            changed = prefix_fingerprints(views, 50, 8)
            assert changed[: slot // 8] == whole[: slot // 8]
            assert not set(changed[slot // 8 :]) & set(whole)
            views.events[:] = before
    views.header[0, SCENARIO] ^= 1
    assert not set(prefix_fingerprints(views, 50, 8)) & set(whole)


def test_reading_prefixes_changes_nothing(growing: tuple[Any, PackedLayout]) -> None:
    words, layout = growing
    before = words.copy()
    prefix_fingerprints(layout.views(words), 50, 8)
    np.testing.assert_array_equal(words, before)
