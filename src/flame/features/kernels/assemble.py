"""One pass over a request that writes its records into the packed buffer, and the passes that complete them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flame.features.kernels.codes import ABSENT, EXPIRED, FOUND, ROW, UNKNOWN
from flame.features.kernels.hashing import mix64
from flame.features.kernels.instructions import prefetch
from flame.jit import Integer, kernel
from flame.layout import CANDIDATE_ITEM, CANDIDATE_ROW, EVENT_ACTION, EVENT_AGE, EVENT_ITEM, EVENT_ROW

ALL, PART, ACTIONS = 0, 1, 2
FRESH_COUNT, STALE_COUNT, MISSING_COUNT, UNKNOWN_COUNT = 0, 1, 2, 3

_LARGEST_AGE = 2**31 - 1

Ints = NDArray[np.int64]
Words = NDArray[np.int32]


class Recipe(NamedTuple):
    """What assembly needs of a schema: `rules` `[sequences, (kind, part, of, limit)]`, `wanted` `[sequences, actions]`.

    `hashed` says how ids become rows of the item table (`schema.ItemTable`).
    """

    rules: Ints
    wanted: NDArray[np.bool_]
    event_words: int
    candidate_words: int
    vocabulary: int
    hashed: bool


class Target(NamedTuple):
    """Where a request's records go: a packed buffer, the starts of its sections, and event slots per sequence."""

    words: Words
    events_start: int
    candidates_start: int
    events: int


class Slots(NamedTuple):
    """One entry per item row of a request, events first: item id, where its row goes, its row of the item table."""

    ids: Ints
    offsets: Ints
    table_rows: Words


@kernel
def table_row(item: Integer, vocabulary: Integer, hashed: Integer) -> Integer:
    """The row of the item table for an id; 0 for one that has none."""
    if item <= 0:
        return np.int64(0)
    if hashed:
        return np.int64(mix64(item) % np.uint64(vocabulary - 1)) + 1
    return item if item < vocabulary else np.int64(0)


@kernel
def table_rows(items: Ints, vocabulary: Integer, hashed: Integer, out: Words) -> None:
    """`table_row` of every item."""
    for i in range(len(items)):
        out[i] = table_row(items[i], vocabulary, hashed)


@kernel
def choose(rule: Ints, wanted: NDArray[np.bool_], actions: Ints, chosen: Ints) -> Integer:
    """Writes the events that one sequence takes of a history to `chosen`, newest first; returns how many."""
    kind, part, of, limit = rule[0], rule[1], rule[2], rule[3]
    first, end = np.int64(0), len(actions)
    if kind == PART:
        first, end = part * len(actions) // of, (part + 1) * len(actions) // of
    count = 0
    for event in range(end - 1, first - 1, -1):
        if count == limit:
            break
        if kind != ACTIONS or wanted[actions[event]]:
            chosen[count] = event
            count += 1
    return count


@kernel
def pack_events(
    recipe: Recipe,
    items: Ints,
    actions: Ints,
    timestamps: Ints,
    target: Target,
    chosen: Ints,
    lengths: Ints,
    slots: Slots,
) -> Integer:
    """Writes item, action and age of the events of every sequence, oldest first; returns the slots filled."""
    words = target.words
    filled = 0
    for sequence in range(len(recipe.rules)):
        count = choose(recipe.rules[sequence], recipe.wanted[sequence], actions, chosen)
        lengths[sequence] = count
        start = target.events_start + sequence * target.events * recipe.event_words
        for slot in range(count):
            event = chosen[count - 1 - slot]
            record = start + slot * recipe.event_words
            row = table_row(items[event], recipe.vocabulary, recipe.hashed)
            words[record + EVENT_ITEM] = row
            words[record + EVENT_ACTION] = actions[event]
            words[record + EVENT_AGE] = min(timestamps[len(timestamps) - 1] - timestamps[event], _LARGEST_AGE)
            slots.ids[filled] = items[event]
            slots.offsets[filled] = record + EVENT_ROW
            slots.table_rows[filled] = row
            filled += 1
    return filled


@kernel
def pack_candidates(recipe: Recipe, candidates: Ints, target: Target, filled: Integer, slots: Slots) -> None:
    """Writes the item of every candidate, in the order of the request, and its slot after the `filled` first."""
    for i in range(len(candidates)):
        record = target.candidates_start + i * recipe.candidate_words
        row = table_row(candidates[i], recipe.vocabulary, recipe.hashed)
        target.words[record + CANDIDATE_ITEM] = row
        slots.ids[filled + i] = candidates[i]
        slots.offsets[filled + i] = record + CANDIDATE_ROW
        slots.table_rows[filled + i] = row


@kernel
def spread(
    rows: Words,
    answers: NDArray[np.uint8],
    inverse: Ints,
    places: Ints,
    words: Words,
    offsets: Ints,
    status: NDArray[np.uint8],
) -> None:
    """Copies row `inverse[i]` of `rows` to slot `places[i]` where it was answered; else leaves the slot as it is."""
    for i in range(len(places)):
        place, source = places[i], inverse[i]
        if answers[source] == FOUND:
            status[place] = ROW
            for word in range(rows.shape[1]):
                words[offsets[place] + word] = rows[source, word]
        elif answers[source] == ABSENT:
            status[place] = UNKNOWN


@kernel
def settle(words: Words, slots: Slots, status: NDArray[np.uint8], default: Words, counts: Ints) -> None:
    """Writes the default row where there is no row, and counts every slot once, by its worst state."""
    for i in range(len(status)):
        if not status[i] & ROW:
            for word in range(len(default)):
                words[slots.offsets[i] + word] = default[word]
        if status[i] & UNKNOWN or slots.table_rows[i] == 0:
            counts[UNKNOWN_COUNT] += 1
        elif not status[i] & ROW:
            counts[MISSING_COUNT] += 1
        elif status[i] & EXPIRED:
            counts[STALE_COUNT] += 1
        else:
            counts[FRESH_COUNT] += 1


@kernel
def embed(words: Words, slots: Slots, table: Words, item_words: Integer) -> None:
    """Copies the item table's row behind the item row of every slot; `table` `[vocabulary, dim]` as words."""
    dim = table.shape[1]
    flat = table.reshape(-1)
    for i in range(len(slots.offsets)):
        if i + 4 < len(slots.offsets):
            for word in range(0, dim, 16):
                prefetch(flat, np.int64(slots.table_rows[i + 4]) * dim + word)
        row, start = slots.table_rows[i], slots.offsets[i] + item_words
        for word in range(dim):
            words[start + word] = table[row, word]
