"""Softmax attention of event rows and candidate rows against a history's keys and values in its state.

For a row of user u and block b, with query q, in layer l:

    out = softmax over the keys it sees ((q k^T + relative bias) * scale) v  (+ x, with `residual`)

An event sees the history (up to itself where it is causal), a candidate the history and its own key, which stands in
`own`. `scale` is 1 / temperature of the block and the user's scenario, times log2(e): the kernel's exponential is
base 2. The history is taken in chunks of a fixed number of keys from slot 0, so that a row's bits depend on its own
inputs and the history alone.

    queries  [users, blocks, events + candidates, dim]        heads side by side
    own      [users, blocks, candidates, 2 * dim]             keys, then values
    state    header int32 [64]: capacity, lengths [blocks]; from there on
             history [2, layers, blocks, heads, capacity, head dim]   keys, then values
             ages    int32 [blocks, capacity]                         only with relative bias

The rows of a tile without a live row are left as they are; of other tiles, rows that are not live get garbage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.rows import Header

if TYPE_CHECKING:
    import torch

STATE_BODY = 256
"""Where a state's body starts, in bytes."""
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


class BiasSizes(NamedTuple):
    """Sizes of the relative bias: the largest distance in slots told apart, and the buckets of log2(1 + seconds)."""

    reach: int
    buckets: int


class BiasTables(NamedTuple):
    """fp32: `[blocks, heads, 2 * reach + 1]`, `[blocks, heads, buckets]` and `[blocks, heads, scenarios]`."""

    positions: torch.Tensor
    times: torch.Tensor
    scales: torch.Tensor


class Memory(NamedTuple):
    """What one launch works on; `x` is read with `residual` only, `out` may be the same tensor.

    x, out `[users, blocks, events + candidates, dim]`; states int64 `[users]`; words int32, headers first; scales
    fp32 `[blocks, scenarios]` of the layer.
    """

    queries: torch.Tensor
    own: torch.Tensor
    x: torch.Tensor
    out: torch.Tensor
    states: torch.Tensor
    words: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class Attention:
    """One attention kernel; `precision` in Triton's words ("bf16", "fp16", "fp32").

    `rows` query rows and `keys` keys are taken at a time, fixed for a model.
    """

    header: Header
    precision: str
    layers: int
    blocks: int
    heads: int
    head_dim: int
    scenarios: int
    causal: bool
    residual: bool
    bias: BiasSizes | None = None
    scenario_word: int = 0
    rows: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2

    @cached_property
    def kernel(self) -> TritonKernel:
        """The kernel with its types and constants."""
        from flame.engine.kernels.attention.triton import attention_kernel

        tensor = f"*{self.precision}"
        reach, buckets = self.bias or (0, 1)
        return TritonKernel(
            name="attention",
            function=attention_kernel,
            signature={
                **dict.fromkeys(("queries", "own", "x", "out"), tensor),
                "states": "*i64",
                "words": "*i32",
                **dict.fromkeys(("scales", "positions", "times", "scenario_scales"), "*fp32"),
                **dict.fromkeys(("events", "candidates", "first_tile", "layer"), "i32"),
            },
            constants={
                "HEADER": self.header.words,
                "SCENARIO": self.scenario_word,
                "COUNT": self.header.candidates,
                "PREFIX": self.header.prefix,
                "BODY": STATE_BODY,
                "AGES": self.history_bytes,
                "LAYERS": self.layers,
                "BLOCKS": self.blocks,
                "HEADS": self.heads,
                "HEAD_DIM": self.head_dim,
                "PADDED": padded_head(self.head_dim),
                "SCENARIOS": self.scenarios,
                "CAUSAL": self.causal,
                "RESIDUAL": self.residual,
                "BIAS": self.bias is not None,
                "REACH": reach,
                "BUCKETS": buckets,
                "ROWS": self.rows,
                "KEYS": self.keys,
            },
            warps=self.warps,
            stages=self.stages,
            multiples_of_16=frozenset({"events", "candidates"}),
        )

    @property
    def history_bytes(self) -> int:
        """Bytes of keys and values of a state for each event of its capacity; the ages stand behind them."""
        return 2 * self.layers * self.blocks * self.heads * self.head_dim * _BYTES[self.precision]

    def state_bytes(self, capacity: int) -> int:
        """Bytes of a state's body for `capacity` events per block."""
        return capacity * (self.history_bytes + (4 * self.blocks if self.bias else 0))

    def launch(
        self,
        runtime: Runtime,
        memory: Memory,
        tables: BiasTables | None,
        layer: int,
        *,
        events: int,
        rows: range,
    ) -> None:
        """Attends for the rows of every user and block that lie in `rows`: all, only events or only candidates.

        `events` is where the candidates' rows start. Bounds of `rows` are multiples of the tile.
        """
        users, blocks, per_block, _ = memory.queries.shape
        first, tiles = rows.start // self.rows, len(rows) // self.rows
        none = memory.scales
        positions, times, scales = tables or (none, none, none)
        if not tiles:
            return
        runtime.launch(
            self.kernel,
            (tiles, self.heads, users * blocks),
            *memory,
            positions,
            times,
            scales,
            events,
            per_block - events,
            first,
            layer,
        )


def padded_head(head_dim: int) -> int:
    """The power of two that a head is padded to inside the kernel; products need at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())
