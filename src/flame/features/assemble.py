"""From a request and what is known of its user to one packed buffer, without a Python object per item."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flame.errors import SchemaError
from flame.features.fingerprint import fingerprint, prefix_fingerprints
from flame.features.kernels import assemble as kernels
from flame.features.rows import pack_rows
from flame.layout import CANDIDATES, SCENARIO, PackedLayout, RecordLayout, Words
from flame.records import FeatureCounts, Features, History, RankRequest
from flame.schema import InputSchema, SequenceSpec

_KINDS = {"all": kernels.ALL, "part": kernels.PART, "actions": kernels.ACTIONS}


class Draft(NamedTuple):
    """A buffer whose item rows are still to come: `slots` says where they go, `status` `[n]` is for who brings them."""

    words: Words
    layout: PackedLayout
    lengths: tuple[int, ...]
    slots: kernels.Slots
    status: NDArray[np.uint8]


class Assembler:
    """Writes packed buffers for one model. Holds no state of a request: any number of threads may use it.

    `item_embeddings` float32 `[vocabulary, dim]` is needed where the schema has the host do the look-up; it is kept
    and read, never copied (a memory map is fine). Raises `SchemaError` if it does not fit. `append_tile` is the
    engine's: in steps of so many events, prefixes of histories are fingerprinted; 0: they are not.
    """

    def __init__(
        self, schema: InputSchema, item_embeddings: NDArray[np.float32] | None = None, append_tile: int = 0
    ) -> None:
        self._schema = schema
        self._record = RecordLayout.of(schema)
        self._user_row = schema.user_row
        self._context_row = schema.context_row
        self._default = schema.item_row.default_row()
        self._default_context = schema.context_row.default_row()
        self._recipe = recipe(schema, self._record)
        self._table = _table(schema, item_embeddings)
        self._append_tile = append_tile

    def layout(self, events: int, candidates: int) -> PackedLayout:
        """The buffer of one request with so many history events and candidates."""
        return PackedLayout(self._record, 1, self._schema.sequence_capacity(events), candidates)

    def draft(
        self, request: RankRequest, user_row: Words, history: History, layout: PackedLayout, words: Words
    ) -> Draft:
        """Writes all but item rows and embeddings into `words` `[layout.words]`, which may hold anything."""
        target = kernels.Target(words, layout.events_start, layout.candidates_start, layout.events)
        most = len(self._recipe.rules) * layout.events + layout.candidates
        slots = kernels.Slots(np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int32))
        items, actions, timestamps = (
            np.array(column, np.int64) for column in (history.items, history.actions, history.timestamps)
        )
        lengths = np.empty(len(self._recipe.rules), np.int64)
        chosen = np.empty(len(items), np.int64)
        filled = kernels.pack_events(self._recipe, items, actions, timestamps, target, chosen, lengths, slots)
        kernels.pack_candidates(self._recipe, np.array(request.candidates, np.int64), target, filled, slots)
        self._write_header(words[: self._record.header_words], request, user_row, lengths)
        used = int(filled) + layout.candidates
        slots = kernels.Slots(slots.ids[:used], slots.offsets[:used], slots.table_rows[:used])
        return Draft(words, layout, tuple(lengths.tolist()), slots, np.zeros(used, np.uint8))

    def finish(self, draft: Draft, unknown_user: bool, pinned: bool = False) -> tuple[Features, int]:
        """The features of a draft whose rows have come as far as they do, and how many of the rows are fresh.

        `pinned` says of the draft's words that GPUs read them where they lie.
        """
        counts = np.zeros(4, np.int64)
        kernels.settle(draft.words, draft.slots, draft.status, self._default, counts)
        if self._table is not None:
            kernels.embed(draft.words, draft.slots, self._table, self._record.item_words)
        fresh, stale, missing, unknown = counts.tolist()
        views, tile = draft.layout.views(draft.words), self._append_tile
        features = Features(
            draft.words,
            draft.layout,
            draft.lengths,
            fingerprint(views, draft.lengths),
            FeatureCounts(stale, missing, unknown, unknown_user),
            prefix_fingerprints(views, draft.lengths[0], tile) if tile else (),
            pinned,
        )
        return features, fresh

    def _write_header(self, header: Words, request: RankRequest, user_row: Words, lengths: NDArray[np.int64]) -> None:
        record = self._record
        header[SCENARIO] = request.scenario
        header[CANDIDATES] = len(request.candidates)
        header[record.lengths] = lengths
        if record.prefix is not None:
            header[record.prefix] = 0
        header[record.user_start : record.context_start] = user_row
        header[record.context_start :] = self._context(request)

    def _context(self, request: RankRequest) -> Words:
        if not request.context:
            return self._default_context
        columns = {name: np.asarray(value)[None] for name, value in request.context.items()}
        row: Words = pack_rows(self._context_row, columns, 1)[0]
        return row


def recipe(schema: InputSchema, record: RecordLayout) -> kernels.Recipe:
    """What the kernels need of a schema."""
    wanted = np.zeros((len(schema.sequences), schema.actions), np.bool_)
    for place, sequence in enumerate(schema.sequences):
        wanted[place, list(sequence.actions)] = True
    return kernels.Recipe(
        rules=np.array([_rule(sequence) for sequence in schema.sequences], np.int64),
        wanted=wanted,
        event_words=record.event_words,
        candidate_words=record.candidate_words,
        vocabulary=schema.item_id.vocabulary,
        hashed=schema.item_id.mapping == "hash",
    )


def _rule(sequence: SequenceSpec) -> tuple[int, int, int, int]:
    """Kind, part, parts and limit; -1 is no limit."""
    return _KINDS[sequence.kind], sequence.part, sequence.of, -1 if sequence.limit is None else sequence.limit


def _table(schema: InputSchema, embeddings: NDArray[np.float32] | None) -> Words | None:
    """The item table as words, where the host looks it up."""
    if schema.item_id.lookup == "device":
        return None
    shape = (schema.item_id.vocabulary, schema.item_id.dim)
    if embeddings is None or embeddings.dtype != np.float32 or embeddings.shape != shape:
        got = "none" if embeddings is None else f"{embeddings.dtype} {list(embeddings.shape)}"
        raise SchemaError(f"item look-up on the host needs item embeddings float32 {list(shape)}, got {got}")
    return np.ascontiguousarray(np.asarray(embeddings)).view(np.int32)
