"""The packed buffer: one run of int32 words that holds all inputs of one launch.

    header      [users, header_words]                    scenario, candidates, sequence lengths, (prefix), user row,
                                                         context row
    events      [users, sequences, events, event_words]  item row index, action, age, item features, (embedding)
    candidates  [users, candidates, candidate_words]     item row index, item features, (embedding)

Records lie one after the other (array of structures), so any range of candidates is one contiguous run of bytes.
Floats are the same four bytes, viewed. Slots beyond a length may hold anything. Age is the time from an event to the
newest event of the history, in seconds, so a packed history does not depend on when it was asked for. An embedding is
part of a record only when the host does the look-up.

An engine may fetch a launch's events and candidates from elsewhere in the host's memory, such as from buffers of one
user: then a slot has a source, which says where they lie. Its header always lies in the launch's own words.

A header has the prefix only where positions count from the oldest event: how many events, from the oldest, the state
that is encoded into holds already. An `encode` leaves them as they are and goes on behind them; nothing else reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flame.schema import InputSchema

Words = NDArray[np.int32]

SCENARIO = 0
CANDIDATES = 1
LENGTHS = 2

EVENT_ITEM = 0
EVENT_ACTION = 1
EVENT_AGE = 2
EVENT_ROW = 3

CANDIDATE_ITEM = 0
CANDIDATE_ROW = 1

SOURCE_EVENTS, SOURCE_CAPACITY, SOURCE_CANDIDATES, SOURCE_WORDS = range(4)
"""What a slot's source tells, int64: the address of its events, how many each of its sequences has room for, and the
address of the first of its candidates."""

ALIGN = 16
"""Words of a cache line."""


class PackedViews(NamedTuple):
    """Views of one packed buffer; see the module's table for the shapes."""

    header: Words
    events: Words
    candidates: Words


@dataclass(frozen=True)
class RecordLayout:
    """Words per record of a model, and where the parts of a header and of a record lie. Made once per model.

    What follows from its numbers is worked out once: every request asks for it.
    """

    sequences: int
    item_words: int
    item_integers: int
    user_words: int
    user_integers: int
    context_words: int
    context_integers: int
    embedding_words: int
    prefix_words: int = 0

    @classmethod
    def of(cls, schema: InputSchema) -> RecordLayout:
        """The record layout of a model with this input schema."""
        item, user, context = schema.item_row, schema.user_row, schema.context_row
        return cls(
            sequences=len(schema.sequences),
            item_words=item.words,
            item_integers=item.integer_words,
            user_words=user.words,
            user_integers=user.integer_words,
            context_words=context.words,
            context_integers=context.integer_words,
            embedding_words=schema.item_id.dim if schema.item_id.lookup == "host" else 0,
            prefix_words=int(schema.positions == "oldest"),
        )

    @cached_property
    def lengths(self) -> slice:
        """The words of a header that are lengths."""
        return slice(LENGTHS, LENGTHS + self.sequences)

    @cached_property
    def prefix(self) -> int | None:
        """The word of a header that is the prefix, where there is one."""
        return LENGTHS + self.sequences if self.prefix_words else None

    @cached_property
    def user_start(self) -> int:
        return LENGTHS + self.sequences + self.prefix_words

    @cached_property
    def context_start(self) -> int:
        return self.user_start + self.user_words

    @cached_property
    def header_words(self) -> int:
        return self.context_start + self.context_words

    @cached_property
    def event_embedding(self) -> int:
        return EVENT_ROW + self.item_words

    @cached_property
    def event_words(self) -> int:
        return self.event_embedding + self.embedding_words

    @cached_property
    def candidate_embedding(self) -> int:
        return CANDIDATE_ROW + self.item_words

    @cached_property
    def candidate_words(self) -> int:
        return self.candidate_embedding + self.embedding_words


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """A packed buffer of a given size: `events` slots in each sequence, `candidates` slots, for `users` users."""

    record: RecordLayout
    users: int
    events: int
    candidates: int

    @property
    def events_start(self) -> int:
        return _aligned(self.users * self.record.header_words)

    @property
    def candidates_start(self) -> int:
        size = self.users * self.record.sequences * self.events * self.record.event_words
        return self.events_start + _aligned(size)

    @property
    def words(self) -> int:
        return self.candidates_start + _aligned(self.users * self.candidates * self.record.candidate_words)

    @property
    def nbytes(self) -> int:
        return 4 * self.words

    def sources(self, words: Words) -> NDArray[np.int64]:
        """Of each slot in `words` itself `[users, SOURCE_WORDS]`."""
        slots = np.arange(self.users)
        table = np.empty((self.users, SOURCE_WORDS), np.int64)
        first = words.__array_interface__["data"][0]
        event_words = self.record.sequences * self.events * self.record.event_words
        table[:, SOURCE_EVENTS] = first + 4 * (self.events_start + slots * event_words)
        table[:, SOURCE_CAPACITY] = self.events
        candidate_words = self.candidates * self.record.candidate_words
        table[:, SOURCE_CANDIDATES] = first + 4 * (self.candidates_start + slots * candidate_words)
        return table

    def views(self, words: Words) -> PackedViews:
        """The three sections of `words` (at least `self.words` long) as arrays that share its memory."""
        record = self.record
        header = words[: self.users * record.header_words]
        events = words[self.events_start :][: self.users * record.sequences * self.events * record.event_words]
        candidates = words[self.candidates_start :][: self.users * self.candidates * record.candidate_words]
        return PackedViews(
            header.reshape(self.users, record.header_words),
            events.reshape(self.users, record.sequences, self.events, record.event_words),
            candidates.reshape(self.users, self.candidates, record.candidate_words),
        )


def _aligned(words: int) -> int:
    """Rounded up to whole cache lines, so that every section starts on one."""
    return -(-words // ALIGN) * ALIGN
