"""A real program of two small kernels, to try the fused engine with: scores are sums over items.

score of a candidate and task t = (sum of the event items of all sequences) / 1000 + (item of the candidate) * (t + 1)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from flame.engine.backends.fused.program import LaunchMemory
from flame.engine.backends.fused.rows import Rows
from flame.engine.backends.fused.state import HEADER_BYTES, DeviceState, new_state
from flame.engine.kernels.gather import Gather
from flame.engine.kernels.kernel import Kernel, Runtime, TritonKernel
from flame.engine.kernels.rows import Selection
from flame.engine.probe import Packed
from flame.engine.spec import ModelSpec, Profile
from flame.records import Scores

TILES = {"narrow": 16, "wide": 64}


@triton.jit
def _total_events(
    words, states, start, events, header: tl.constexpr, event: tl.constexpr, blocks: tl.constexpr, tile: tl.constexpr
):
    user, block = tl.program_id(0), tl.program_id(1)
    length = tl.load(words + user * header + 2 + block)
    state = tl.load(states + user).to(tl.pointer_type(tl.int32))
    tl.store(state + 1 + block, length)
    total = tl.zeros((tile,), tl.float32)
    for first in range(0, length, tile):
        slot = first + tl.arange(0, tile)
        item = tl.load(words + start + ((user * blocks + block) * events + slot) * event, slot < length, 0)
        total += item.to(tl.float32)
    tl.store(state.to(tl.pointer_type(tl.float32)) + 64 + block, tl.sum(total))


@triton.jit
def _score(
    words,
    states,
    scores,
    start,
    candidates,
    header: tl.constexpr,
    record: tl.constexpr,
    blocks: tl.constexpr,
    tasks: tl.constexpr,
    tile: tl.constexpr,
):
    user = tl.program_id(0)
    slot = tl.program_id(1) * tile + tl.arange(0, tile)
    live = slot < tl.load(words + user * header + 1)
    sums = tl.load(states + user).to(tl.pointer_type(tl.float32)) + 64
    total = 0.0
    for block in range(blocks):
        total += tl.load(sums + block)
    item = tl.load(words + start + (user * candidates + slot) * record, live, 0).to(tl.float32)
    for task in range(tasks):
        tl.store(scores + (user * candidates + slot) * tasks + task, total / 1000 + item * (task + 1), live)


class TotalsProgram:
    """The program; keeps the memory of the states that `rank` uses. Scores have two ways; `gone` lists those gone."""

    append_tile = 0

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self.spec = spec
        self.runtime = runtime
        self._gather = Gather(spec.record)
        record = spec.record
        sizes = {"header": record.header_words, "blocks": record.sequences, "tile": 16}
        self._total = TritonKernel(
            "total_events",
            _total_events,
            {"words": "*i32", "states": "*i64", "start": "i32", "events": "i32"},
            sizes | {"event": record.event_words},
        )
        sizes |= {"record": record.candidate_words, "tasks": len(spec.tasks)}
        signature = {"words": "*i32", "states": "*i64", "scores": "*fp32", "start": "i32", "candidates": "i32"}
        self._score = {
            way: TritonKernel(f"score_{way}", _score, signature, sizes | {"tile": tile}) for way, tile in TILES.items()
        }
        self._taken: dict[tuple[Profile, str], str] = {}
        self.gone: list[str] = []
        self._own: list[DeviceState] = []

    def kernels(self) -> Sequence[Kernel]:
        return self._gather.kernel, self._total, *self._score.values()

    def state_bytes(self, capacity: int) -> int:
        return 4 * self.spec.record.sequences

    def memory(self, profile: Profile) -> LaunchMemory:
        rows = Rows.of(self.spec, profile)
        device = self.runtime.device
        own = [new_state(rows.events, self.state_bytes(rows.events), device) for _ in range(profile.users)]
        self._own += own
        return LaunchMemory(
            profile,
            rows,
            words=torch.zeros(self.spec.layout(profile).words, dtype=torch.int32, device=device),
            scores=torch.full((profile.users, profile.candidates, len(self.spec.tasks)), torch.nan, device=device),
            states=torch.zeros(profile.users, dtype=torch.int64, device=device),
            own_states=torch.tensor([state.address for state in own], device=device),
            x=torch.empty(0, device=device),
        )

    def gather(self, memory: LaunchMemory, header: torch.Tensor, sources: torch.Tensor, select: Selection) -> None:
        self._gather.launch(self.runtime, self.spec.layout(memory.profile), header, sources, memory.words, select)

    def rank(self, memory: LaunchMemory) -> None:
        self._encode(memory, memory.own_states)
        self._scores(memory, memory.own_states, "rank")

    def encode(self, memory: LaunchMemory) -> None:
        self._encode(memory, memory.states)

    def score(self, memory: LaunchMemory) -> None:
        self._scores(memory, memory.states, "score")

    def _encode(self, memory: LaunchMemory, states: torch.Tensor) -> None:
        layout = self.spec.layout(memory.profile)
        grid = (memory.profile.users, self.spec.record.sequences)
        self.runtime.launch(self._total, grid, memory.words, states, layout.events_start, layout.events)

    def ways(self, profile: Profile, kind: str) -> Sequence[str]:
        return () if kind == "encode" else tuple(TILES)

    def take(self, profile: Profile, kind: str, way: str) -> None:
        self._taken[profile, kind] = way

    def _scores(self, memory: LaunchMemory, states: torch.Tensor, kind: str) -> None:
        way = self._taken.get((memory.profile, kind), "narrow")
        self.gone.append(way)
        layout = self.spec.layout(memory.profile)
        grid = (memory.profile.users, triton.cdiv(layout.candidates, TILES[way]))
        arguments = (memory.words, states, memory.scores, layout.candidates_start, layout.candidates)
        self.runtime.launch(self._score[way], grid, *arguments)


def expected(spec: ModelSpec, packed: Packed) -> list[Scores]:
    """What a launch must give, by user."""
    views = packed.layout.views(packed.words)
    found = []
    for user, count in enumerate(packed.counts):
        total = np.float32(0)
        for sequence, length in enumerate(views.header[user, 2 : 2 + spec.record.sequences]):
            total += views.events[user, sequence, :length, 0].sum(dtype=np.float32)
        item = views.candidates[user, :count, 0].astype(np.float32)
        found.append(total / np.float32(1000) + item[:, None] * np.arange(1, len(spec.tasks) + 1, dtype=np.float32))
    return found


assert HEADER_BYTES == 4 * 64, "the kernels know where the body starts"
