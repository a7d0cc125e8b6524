"""What a model takes in: ids, features, sequences, limits. Read from `model.toml`; features and engine share it.

A feature row is a run of four-byte words, integers first and then floats, so that the store, the cache, the packed
buffer and the model all look at the same bytes and nobody converts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from flame.errors import SchemaError

MOST_WORDS = 2**31 - 1
"""Ids of table rows, counts and lengths are int32 in the packed buffer."""

Positive = Annotated[int, Meta(ge=1, le=MOST_WORDS)]
Text = Annotated[str, Meta(min_length=1)]

_LARGEST = float(np.finfo(np.float32).max)


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One named feature of fixed shape.

    `int32` fields are categorical: values lie in `[0, vocabulary)`, 0 is the usual "none". `float32` fields are dense
    and have no vocabulary. A shape of `()` is one value; `(4,)` is four, embedded with one table and summed.
    """

    name: Text
    dtype: Literal["int32", "float32"]
    shape: tuple[Positive, ...] = ()
    vocabulary: Positive | None = None
    default: float = 0.0

    def __post_init__(self) -> None:
        if (self.dtype == "int32") != (self.vocabulary is not None):
            raise SchemaError(
                f"field {self.name!r}: an int32 field needs a vocabulary and a float32 field has none; "
                f"got dtype {self.dtype} with vocabulary {self.vocabulary}"
            )
        if self.vocabulary is not None and not 0 <= self.default < self.vocabulary:
            raise SchemaError(f"field {self.name!r}: default {self.default} is outside [0, {self.vocabulary})")
        if self.vocabulary is not None and self.default != int(self.default):
            raise SchemaError(f"field {self.name!r}: default {self.default} of an int32 field is not a whole number")
        if not abs(self.default) <= _LARGEST:
            raise SchemaError(f"field {self.name!r}: default {self.default} is not a finite float32")

    @property
    def words(self) -> int:
        return math.prod(self.shape)


class RowLayout:
    """Where each field of a row lies, in words: integer fields first, then floats, each in declared order."""

    def __init__(self, fields: Sequence[Field]) -> None:
        names = [field.name for field in fields]
        if len(set(names)) != len(names):
            raise SchemaError(f"field names must be unique, got {names}")
        self.fields: tuple[Field, ...] = tuple(sorted(fields, key=lambda field: field.dtype != "int32"))
        self.offsets: dict[str, int] = {}
        position = 0
        for field in self.fields:
            self.offsets[field.name] = position
            position += field.words
        self.words: int = position
        self.integer_words: int = sum(field.words for field in self.fields if field.dtype == "int32")
        self.float_words: int = self.words - self.integer_words
        rows = sum(field.vocabulary or 0 for field in self.fields)
        if rows > MOST_WORDS:
            raise SchemaError(f"the vocabularies of fields {names} sum to {rows}, over {MOST_WORDS}; make some smaller")

    def default_row(self) -> NDArray[np.int32]:
        """A new row `[words]` that holds every field's default."""
        row = np.zeros(self.words, np.int32)
        for field in self.fields:
            start = self.offsets[field.name]
            row[start : start + field.words].view(np.dtype(field.dtype))[:] = field.default
        return row


class ItemTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The item embedding table of the model: `[vocabulary, dim]`.

    `direct` takes an id in `[1, vocabulary)` as its own row; `hash` spreads any id over the rows `[1, vocabulary)`.
    Row 0 stands for unknown items. `lookup` says who reads the table: the `device` inside the launch, or the `host`,
    which writes the embeddings into the packed buffer.
    """

    vocabulary: Annotated[int, Meta(ge=2, le=MOST_WORDS)]
    dim: Positive
    mapping: Literal["direct", "hash"] = "direct"
    lookup: Literal["device", "host"] = "device"


class SequenceSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The strategy that picks one sub-sequence of the history (Climber 2.1); each sequence has a transformer block.

    `all` takes every event, `part` the `part`-th of `of` contiguous pieces of equal length (oldest first), `actions`
    the events with one of `actions`. Of what it picks, the newest events up to the capacity are kept.
    """

    name: Text
    kind: Literal["all", "part", "actions"] = "all"
    part: Annotated[int, Meta(ge=0)] = 0
    of: Positive = 1
    actions: tuple[int, ...] = ()
    limit: Positive | None = None

    def __post_init__(self) -> None:
        if self.part >= self.of:
            raise SchemaError(f"sequence {self.name!r}: there is no part {self.part} of {self.of}, parts count from 0")
        if self.kind != "part" and self.of > 1:
            raise SchemaError(f'sequence {self.name!r}: `part` and `of` belong to kind "part", and it is "{self.kind}"')
        if (self.kind == "actions") != bool(self.actions):
            raise SchemaError(f'sequence {self.name!r}: `actions` belongs to kind "actions", and that kind needs it')

    def capacity(self, history: int) -> int:
        """The most events this sequence can keep of a history of `history` events."""
        most = -(-history // self.of) if self.kind == "part" else history
        return most if self.limit is None else min(most, self.limit)


class InputSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All a model reads: the `[input]` table of `model.toml`.

    `positions` says from which end of a sequence its events are numbered: from the `newest`, so that a new event gives
    every other a new number, or from the `oldest`, so that it changes nothing before it.
    """

    item_id: ItemTable
    max_history: Annotated[int, Meta(ge=0, le=MOST_WORDS)]
    max_candidates: Positive
    actions: Positive
    scenarios: Positive = 1
    item: tuple[Field, ...] = ()
    user: tuple[Field, ...] = ()
    context: tuple[Field, ...] = ()
    sequences: tuple[SequenceSpec, ...] = (SequenceSpec("all"),)
    positions: Literal["newest", "oldest"] = "newest"

    def __post_init__(self) -> None:
        if not self.sequences:
            raise SchemaError("a model needs at least one sequence")
        names = [sequence.name for sequence in self.sequences]
        if len(set(names)) != len(names):
            raise SchemaError(f"sequence names must be unique, got {names}")
        for sequence in self.sequences:
            bad = [action for action in sequence.actions if not 0 <= action < self.actions]
            if bad:
                raise SchemaError(f"sequence {sequence.name!r}: actions {bad} are outside [0, {self.actions})")
        for fields in (self.item, self.user, self.context):
            RowLayout(fields)

    @property
    def item_row(self) -> RowLayout:
        return RowLayout(self.item)

    @property
    def user_row(self) -> RowLayout:
        return RowLayout(self.user)

    @property
    def context_row(self) -> RowLayout:
        return RowLayout(self.context)

    def sequence_capacity(self, history: int) -> int:
        """Event slots of each sequence in a buffer made for `history` events: the largest need of any sequence."""
        return max(sequence.capacity(history) for sequence in self.sequences)
