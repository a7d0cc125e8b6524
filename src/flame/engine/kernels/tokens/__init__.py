"""Tokens of events and candidates straight from the packed words: every look-up and sum of the input stage.

One launch does both. The vectors that are equal for all rows are added up when the weights are packed; all tables but
the item table lie in one, so that the kernel has few pointers. Sums are fp32, in the order in which the code stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.tokens.triton import tokens

_MOST_PER_PROGRAM = 1024
_PROJECTED_ROWS = 16
_PROJECTED_CHUNK = 128
_UNROLLED = 32


class TokenSizes(NamedTuple):
    """What the kernel has to know of a model.

    Words of records: an event is item, action, age, integers, floats, embedding; a candidate is item, integers,
    floats, embedding; a header holds the scenario, the candidate count and the lengths at the places given here, then
    the user's and the context's integers and floats. `*_offsets` give for every integer word the first row of its
    field among that part's categories. `host` says that the embedding is part of the record. `times` and `scenarios`
    are rows of HSTU's tables, 0 where there are none. `ages` is None where the state keeps no ages; otherwise how
    many bytes of a state's body lie in front of them, for each event of its capacity. `oldest` counts positions from
    the oldest event and not from the newest, `gaps` takes times from event to event and not to the newest, and
    `prefix_word` tells how many events the state holds already, -1 where a header does not tell.
    """

    dim: int
    blocks: int
    item_dim: int
    host: bool
    actions: int
    positions: int
    header_words: int
    event_words: int
    candidate_words: int
    user_start: int
    context_start: int
    item_categories: int = 0
    item_offsets: tuple[int, ...] = ()
    item_floats: int = 0
    user_categories: int = 0
    user_offsets: tuple[int, ...] = ()
    user_floats: int = 0
    context_categories: int = 0
    context_offsets: tuple[int, ...] = ()
    context_floats: int = 0
    times: int = 0
    scenarios: int = 0
    ages: int | None = None
    scenario_word: int = 0
    count_word: int = 1
    lengths_word: int = 2
    oldest: bool = False
    gaps: bool = False
    prefix_word: int = -1
    state_header: int = 256

    @property
    def projected(self) -> bool:
        """Whether items pass a linear layer."""
        return self.item_dim != self.dim

    @property
    def chunk(self) -> int:
        """Columns of a token that one program makes."""
        most = _PROJECTED_CHUNK if self.projected else 512
        return min(max(16, _power_of_two(self.dim)), most)

    @property
    def rows(self) -> int:
        """Tokens that one program makes."""
        return _PROJECTED_ROWS if self.projected else max(1, _MOST_PER_PROGRAM // self.chunk)


class TokenWeights(NamedTuple):
    """The input stage on the device.

    `items` `[vocabulary, item dim]`, or `table` again where the host looks items up; `table` `[rows, dim]` actions,
    positions, categories of item, user and context, times, scenarios, one under the other; `projection`
    `[item dim, dim]`, or `table` again; `vectors` fp32 `[2 + floats, dim]`: what every event gets, what every
    candidate gets, then a vector per float of item, user and context.
    """

    items: Tensor
    table: Tensor
    projection: Tensor
    vectors: Tensor


class TokenPlaces(NamedTuple):
    """Where a launch of a profile finds its records and puts its tokens, all but the users per user.

    `events_start`, `candidates_start` in words; `event_slots`, `candidate_slots` records per sequence and user;
    `event_rows` the row of `x` at which candidates begin.
    """

    users: int
    events_start: int
    event_slots: int
    candidates_start: int
    candidate_slots: int
    event_rows: int


class Tokens:
    """The input stage of one model; `pointer` is Triton's type of a pointer to its precision."""

    def __init__(self, sizes: TokenSizes, pointer: str) -> None:
        self.sizes = sizes
        self._kernel = _kernel(sizes, pointer)

    @property
    def kernels(self) -> tuple[TritonKernel, ...]:
        return (self._kernel,)

    def pack(self, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> TokenWeights:
        """From the tensors of an input stage by its own names (`items.weight`, `item_features.dense.bias`, ...).

        HSTU's `times.weight` and `scenarios.weight` stand beside them. An item table of `dtype` on `device` is kept,
        not copied.
        """
        table = _table(weights, self.sizes).to(device, dtype)
        projection = weights.get("item_projection.weight")
        return TokenWeights(
            items=table if self.sizes.host else weights["items.weight"].to(device, dtype).contiguous(),
            table=table,
            projection=table if projection is None else projection.t().to(device, dtype).contiguous(),
            vectors=_vectors(weights, self.sizes).to(device, torch.float32),
        )

    def rank(
        self, runtime: Runtime, weights: TokenWeights, places: TokenPlaces, words: Tensor, x: Tensor, states: Tensor
    ) -> None:
        """Tokens of all live events and candidates into `x` `[users, blocks, rows, dim]`, lengths into the states.

        `states` int64 `[users]` are addresses; nothing is written at address 0.
        """
        tiles = self._event_tiles(places) * self.sizes.blocks
        self._launch(runtime, weights, places, (words, x, states), 0, tiles + self._candidate_tiles(places))

    def encode(
        self, runtime: Runtime, weights: TokenWeights, places: TokenPlaces, words: Tensor, x: Tensor, states: Tensor
    ) -> None:
        """As `rank`, events alone."""
        tiles = self._event_tiles(places) * self.sizes.blocks
        self._launch(runtime, weights, places, (words, x, states), 0, tiles)

    def score(
        self, runtime: Runtime, weights: TokenWeights, places: TokenPlaces, words: Tensor, x: Tensor, states: Tensor
    ) -> None:
        """As `rank`, candidates alone; `states` are not touched."""
        first = self._event_tiles(places) * self.sizes.blocks
        self._launch(runtime, weights, places, (words, x, states), first, self._candidate_tiles(places))

    def _event_tiles(self, places: TokenPlaces) -> int:
        """At least one, which writes the length of a sequence that has no slots."""
        return max(1, -(-places.event_slots // self.sizes.rows))

    def _candidate_tiles(self, places: TokenPlaces) -> int:
        return -(-places.candidate_slots // self.sizes.rows)

    def _launch(
        self,
        runtime: Runtime,
        weights: TokenWeights,
        places: TokenPlaces,
        buffers: tuple[Tensor, Tensor, Tensor],
        first: int,
        tiles: int,
    ) -> None:
        words, x, states = buffers
        assert x.stride(3) == 1, "tokens are rows of consecutive numbers"
        grid = (tiles, -(-self.sizes.dim // self.sizes.chunk), places.users)
        runtime.launch(
            self._kernel,
            grid,
            *(words, x, states, *weights),
            *(first, self._event_tiles(places), *places[1:]),
            *(x.stride(0), x.stride(1), x.stride(2)),
        )


def _kernel(sizes: TokenSizes, pointer: str) -> TritonKernel:
    integers = ("first", "event_tiles", *TokenPlaces._fields[1:], "user_stride", "block_stride", "row_stride")
    tables = dict.fromkeys(("items", "table", "projection"), pointer)
    return TritonKernel(
        name="tokens",
        function=tokens,
        signature={"words": "*i32", "x": pointer, "states": "*i64", **tables, "vectors": "*fp32"}
        | dict.fromkeys(integers, "i32"),
        constants=_constants(sizes),
        warps=4,
        multiples_of_16=_multiples(sizes),
    )


def _multiples(sizes: TokenSizes) -> frozenset[str]:
    """Strides of `x` are whole rows."""
    strides = ("user_stride", "block_stride", "row_stride")
    return frozenset(strides) if sizes.dim % 16 == 0 else frozenset()


def _constants(sizes: TokenSizes) -> dict[str, object]:
    starts = _starts(sizes)
    return {
        "DIM": sizes.dim,
        "BLOCKS": sizes.blocks,
        "ITEM_DIM": sizes.item_dim,
        "HOST": sizes.host,
        "PROJECTED": sizes.projected,
        "HEADER_WORDS": sizes.header_words,
        "SCENARIO_WORD": sizes.scenario_word,
        "COUNT_WORD": sizes.count_word,
        "LENGTHS_WORD": sizes.lengths_word,
        "PREFIX_WORD": sizes.prefix_word,
        "USER_START": sizes.user_start,
        "CONTEXT_START": sizes.context_start,
        "EVENT_WORDS": sizes.event_words,
        "CANDIDATE_WORDS": sizes.candidate_words,
        "POSITIONS": starts["positions"],
        "ITEM_ROWS": tuple(starts["item"] + offset for offset in sizes.item_offsets),
        "ITEM_FLOATS": sizes.item_floats,
        "USER_ROWS": tuple(starts["user"] + offset for offset in sizes.user_offsets),
        "USER_FLOATS": sizes.user_floats,
        "CONTEXT_ROWS": tuple(starts["context"] + offset for offset in sizes.context_offsets),
        "CONTEXT_FLOATS": sizes.context_floats,
        "TIMES": starts["times"],
        "BUCKETS": sizes.times,
        "SCENARIOS": starts["scenarios"] if sizes.scenarios else -1,
        "OLDEST": sizes.oldest,
        "GAPS": sizes.gaps,
        "AGES": -1 if sizes.ages is None else sizes.ages,
        "STATE_HEADER": sizes.state_header,
        "ROWS": sizes.rows,
        "CHUNK": sizes.chunk,
        "UNROLLED": _UNROLLED,
    }


def _parts(sizes: TokenSizes) -> dict[str, int]:
    """The parts of the combined table and their rows, in order."""
    return {
        "actions": sizes.actions,
        "positions": sizes.positions,
        "item": sizes.item_categories,
        "user": sizes.user_categories,
        "context": sizes.context_categories,
        "times": sizes.times,
        "scenarios": sizes.scenarios,
    }


def _starts(sizes: TokenSizes) -> dict[str, int]:
    starts, position = {}, 0
    for name, rows in _parts(sizes).items():
        starts[name] = position
        position += rows
    return starts


def _table(weights: Mapping[str, Tensor], sizes: TokenSizes) -> Tensor:
    names = {"item": "item_features.categories", "user": "user_features.categories"}
    names["context"] = "context_features.categories"
    parts = [(weights[f"{names.get(part, part)}.weight"], rows) for part, rows in _parts(sizes).items() if rows]
    assert all(tensor.shape == (rows, sizes.dim) for tensor, rows in parts), "the sizes are not these weights'"
    return torch.cat([tensor for tensor, _ in parts])


def _vectors(weights: Mapping[str, Tensor], sizes: TokenSizes) -> Tensor:
    """What every event and every candidate gets, and the columns of the linear maps of dense features."""
    floats = {"item": sizes.item_floats, "user": sizes.user_floats, "context": sizes.context_floats}
    dense = [f"{part}_features.dense" for part, count in floats.items() if count]
    every = torch.zeros(sizes.dim)
    for name in ["item_projection"] * sizes.projected + dense[: int(sizes.item_floats > 0)]:
        every = every + weights[f"{name}.bias"].cpu().float()
    candidate = every + weights["positions.weight"][0].cpu().float()
    if sizes.times:
        candidate = candidate + weights["times.weight"][0].cpu().float()
    for name in dense[int(sizes.item_floats > 0) :]:
        candidate = candidate + weights[f"{name}.bias"].cpu().float()
    columns = [weights[f"{name}.weight"].cpu().float().t() for name in dense]
    return torch.cat([every[None], candidate[None], *columns]).contiguous()


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
