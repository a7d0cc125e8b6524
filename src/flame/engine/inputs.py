"""The packed buffer as tensors: what a model reads, without a copy."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

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
)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """All inputs of one launch, users first. Integers are int32, floats float32.

    ==================  =========================================  ==================================================
    field               shape                                      meaning
    ==================  =========================================  ==================================================
    scenario            [users]                                    in [0, scenarios)
    candidate_count     [users]                                    candidates in use; 0 marks an unused slot
    lengths             [users, sequences]                         events in use, oldest first
    event_item          [users, sequences, events]                 row of the item table
    event_action        [users, sequences, events]                 in [0, actions)
    event_age           [users, sequences, events]                 seconds before the user's newest event
    event_integers      [users, sequences, events, integers]       categorical item features, one column per word
    event_floats        [users, sequences, events, floats]         dense item features
    event_embedding     [users, sequences, events, item dim]       only where the host does the look-up, else None
    candidate_item      [users, candidates]                        row of the item table
    candidate_integers  [users, candidates, integers]
    candidate_floats    [users, candidates, floats]
    candidate_embedding [users, candidates, item dim]              only where the host does the look-up, else None
    user_integers       [users, integers of the user row]
    user_floats         [users, floats of the user row]
    context_integers    [users, integers of the context row]
    context_floats      [users, floats of the context row]
    ==================  =========================================  ==================================================

    Slots beyond a length or a count hold garbage (any integer, NaN): a model replaces them before it uses them as
    an index or in arithmetic. `scenario`, `candidate_count` and `lengths` are right for every user of the launch.
    """

    scenario: Tensor
    candidate_count: Tensor
    lengths: Tensor
    event_item: Tensor
    event_action: Tensor
    event_age: Tensor
    event_integers: Tensor
    event_floats: Tensor
    event_embedding: Tensor | None
    candidate_item: Tensor
    candidate_integers: Tensor
    candidate_floats: Tensor
    candidate_embedding: Tensor | None
    user_integers: Tensor
    user_floats: Tensor
    context_integers: Tensor
    context_floats: Tensor

    @property
    def users(self) -> int:
        return self.scenario.shape[0]

    @property
    def event_valid(self) -> Tensor:
        """Which event slots are in use: bool `[users, sequences, events]`."""
        slots = torch.arange(self.event_item.shape[2], device=self.lengths.device)
        return slots < self.lengths[:, :, None]

    @property
    def candidate_valid(self) -> Tensor:
        """Which candidate slots are in use: bool `[users, candidates]`."""
        slots = torch.arange(self.candidate_item.shape[1], device=self.candidate_count.device)
        return slots < self.candidate_count[:, None]

    def first(self, users: int) -> ModelInputs:
        """The first `users` slots, as views."""
        return self.slice(0, users)

    def slice(self, start: int, stop: int) -> ModelInputs:
        """The user slots `start` to `stop`, as views."""
        return ModelInputs(**{field.name: _part(getattr(self, field.name), start, stop) for field in fields(self)})

    def events_from(self, first: int) -> ModelInputs:
        """The same users with the event slots from `first` on alone, as views."""
        names = ("event_item", "event_action", "event_age", "event_integers", "event_floats", "event_embedding")
        later = {name: _later(getattr(self, name), first) for name in names}
        return replace(self, lengths=(self.lengths - first).clamp(min=0), **later)


def unpack(words: Tensor, layout: PackedLayout) -> ModelInputs:
    """Views of a packed buffer `words` (int32, at least `layout.words` long, on any device); nothing is copied."""
    record = layout.record
    header = words[: layout.users * record.header_words].view(layout.users, record.header_words)
    events = _section(words, layout.events_start, (layout.users, record.sequences, layout.events, record.event_words))
    candidates = _section(words, layout.candidates_start, (layout.users, layout.candidates, record.candidate_words))
    event_integers, event_floats, event_embedding = _item(layout, events, EVENT_ROW)
    candidate_integers, candidate_floats, candidate_embedding = _item(layout, candidates, CANDIDATE_ROW)
    user_integers, user_floats = _row(header, record.user_start, record.user_integers, record.user_words)
    context_integers, context_floats = _row(header, record.context_start, record.context_integers, record.context_words)
    return ModelInputs(
        scenario=header[:, SCENARIO],
        candidate_count=header[:, CANDIDATES],
        lengths=header[:, LENGTHS : LENGTHS + record.sequences],
        event_item=events[..., EVENT_ITEM],
        event_action=events[..., EVENT_ACTION],
        event_age=events[..., EVENT_AGE],
        event_integers=event_integers,
        event_floats=event_floats,
        event_embedding=event_embedding,
        candidate_item=candidates[..., CANDIDATE_ITEM],
        candidate_integers=candidate_integers,
        candidate_floats=candidate_floats,
        candidate_embedding=candidate_embedding,
        user_integers=user_integers,
        user_floats=user_floats,
        context_integers=context_integers,
        context_floats=context_floats,
    )


def _part(tensor: Tensor | None, start: int, stop: int) -> Any:
    return None if tensor is None else tensor[start:stop]


def _later(tensor: Tensor | None, first: int) -> Any:
    return None if tensor is None else tensor[:, :, first:]


def _section(words: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
    size = 1
    for length in shape:
        size *= length
    return words[start : start + size].view(shape)


def _row(records: Tensor, start: int, integers: int, words: int) -> tuple[Tensor, Tensor]:
    """A feature row inside records, as its integer and its float columns."""
    middle = start + integers
    return records[..., start:middle], records[..., middle : start + words].view(torch.float32)


def _item(layout: PackedLayout, records: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The item part of event or candidate records: integers, floats and the embedding where there is one."""
    record = layout.record
    integers, floats = _row(records, start, record.item_integers, record.item_words)
    end = start + record.item_words
    if not record.embedding_words:
        return integers, floats, None
    return integers, floats, records[..., end : end + record.embedding_words].view(torch.float32)
