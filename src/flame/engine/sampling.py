"""Random inputs that a model could meet: packed buffers with valid ids, actions, ages and features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from flame.engine.spec import ModelSpec
from flame.layout import (
    CANDIDATE_ITEM,
    CANDIDATE_ROW,
    CANDIDATES,
    EVENT_ACTION,
    EVENT_AGE,
    EVENT_ITEM,
    EVENT_ROW,
    LENGTHS,
    SCENARIO,
    PackedLayout,
    Words,
)
from flame.schema import RowLayout

NAN_WORD = int(np.array(np.nan, np.float32).view(np.int32))
"""What fills words that mean nothing: NaN, and an impossible id."""


def random_words(
    spec: ModelSpec,
    layout: PackedLayout,
    lengths: Sequence[Sequence[int]],
    counts: Sequence[int],
    rng: Generator,
) -> Words:
    """A new packed buffer `[layout.words]` for the given events per user and sequence and candidates per user.

    Users beyond `counts` are unused. Every slot and word that holds nothing is filled with NaN bits, which are also
    impossible ids, so that a model which reads one is found out.
    """
    words = np.full(layout.words, NAN_WORD, np.int32)
    views = layout.views(words)
    views.header[:, [SCENARIO, CANDIDATES]] = 0
    views.header[:, LENGTHS : layout.record.user_start] = 0
    for user, (own, count) in enumerate(zip(lengths, counts, strict=True)):
        _fill_header(spec, layout, views.header[user], own, count, rng)
        for sequence, length in enumerate(own):
            _fill_events(spec, layout, views.events[user, sequence, :length], rng)
        _fill_items(spec, layout, views.candidates[user, :count], CANDIDATE_ITEM, CANDIDATE_ROW, rng)
    return words


def random_lengths(spec: ModelSpec, history: int, rng: Generator) -> tuple[int, ...]:
    """Events per sequence of one user whose history has up to `history` events; sometimes none, one, or all."""
    capacities = [sequence.capacity(history) for sequence in spec.input.sequences]
    kind = rng.integers(0, 8)
    if kind < 3:
        return tuple(min((0, 1, capacity)[kind], capacity) for capacity in capacities)
    return tuple(int(rng.integers(0, capacity + 1)) for capacity in capacities)


def _fill_header(
    spec: ModelSpec, layout: PackedLayout, header: Words, lengths: Sequence[int], count: int, rng: Generator
) -> None:
    record = layout.record
    header[SCENARIO] = rng.integers(0, spec.input.scenarios)
    header[CANDIDATES] = count
    header[record.lengths] = lengths
    _fill_row(spec.input.user_row, header[None, record.user_start : record.context_start], rng)
    _fill_row(spec.input.context_row, header[None, record.context_start :], rng)


def _fill_events(spec: ModelSpec, layout: PackedLayout, events: Words, rng: Generator) -> None:
    """`events` `[events, event_words]`: gaps between events from seconds to weeks."""
    length = len(events)
    events[:, EVENT_ACTION] = rng.integers(0, spec.input.actions, length)
    gaps = np.exp(rng.uniform(0, np.log(1e6), length)).astype(np.int64) * (rng.random(length) < 0.9)
    events[:, EVENT_AGE] = np.minimum(gaps[::-1].cumsum()[::-1], 2**31 - 1) if length else 0
    _fill_items(spec, layout, events, EVENT_ITEM, EVENT_ROW, rng)


def _fill_items(spec: ModelSpec, layout: PackedLayout, records: Words, item: int, row: int, rng: Generator) -> None:
    """Item, features and embedding of `records` `[records, words]`."""
    record = layout.record
    records[:, item] = rng.integers(0, spec.input.item_id.vocabulary, len(records))
    end = row + record.item_words
    _fill_row(spec.input.item_row, records[:, row:end], rng)
    if record.embedding_words:
        vectors = records[:, end : end + record.embedding_words]
        vectors[:] = (rng.standard_normal(vectors.shape, np.float32) * 0.3).view(np.int32)


def _fill_row(row: RowLayout, words: Words, rng: Generator) -> None:
    """`words` `[records, row words]` with categories inside their vocabularies and standard normal dense values."""
    for field in row.fields:
        start = row.offsets[field.name]
        part = words[:, start : start + field.words]
        if field.vocabulary is not None:
            part[:] = rng.integers(0, field.vocabulary, part.shape)
        else:
            part[:] = rng.standard_normal(part.shape, np.float32).view(np.int32)
