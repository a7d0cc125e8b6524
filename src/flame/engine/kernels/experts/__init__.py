"""Multi-task head: shared experts, mixed for each task by its gate (MMoE), then a tower per task.

Two launches. In the first every program does one expert for a tile of candidates, or one chunk of its hidden units
where a launch has few candidates (and others do the gates); in the second the experts' parts are added, mixed
and sent through the towers. Both ways give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.kernels.experts.sizes import ExpertSizes
from flame.engine.kernels.experts.triton import experts, mixed_towers
from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.towers import packed_vectors

__all__ = ["SPREAD", "WHOLE", "ExpertHead", "ExpertSizes", "ExpertTile", "ExpertWeights", "ExpertWork"]

_MIXED_TILE = 16
_MIXED_EACH = 4
"""Candidates of a tile where experts are spread: a tile reads 8 KiB for each, four times over."""
_FEW_PROGRAMS = 64
"""Launches that would have fewer programs than this spread an expert over several."""
_MOST_PARTS = 8
"""Chunks of an expert that may lie in programs of their own: its towers hold all of them in registers."""


class ExpertTile(NamedTuple):
    """Candidates, warps and pipeline stages of one program."""

    rows: int
    warps: int
    stages: int


SPREAD = ExpertTile(64, 4, 2)
WHOLE = ExpertTile(128, 8, 2)
_WHOLE_SMALL = ExpertTile(64, 4, 2)
"""Where a block has less than 164 KiB of shared memory."""
_FP32 = ExpertTile(16, 4, 1)


class ExpertWeights(NamedTuple):
    """`first` `[experts, inputs, hidden]`, `second` `[experts, hidden, dim]`, `gates` `[tasks, inputs, experts]`,
    `towers` `[tasks, dim, tower hidden]`, all padded with zeros; `vectors` fp32: the hidden biases of all experts,
    their output biases, the gates' biases, then the towers' as `flame.engine.kernels.towers` has them."""

    first: Tensor
    second: Tensor
    gates: Tensor
    towers: Tensor
    vectors: Tensor


class ExpertWork(NamedTuple):
    """Between the two launches, fp32: `parts` `[users, candidates, experts * parts, dim]`, `shares`
    `[users, candidates, tasks, experts]`."""

    parts: Tensor
    shares: Tensor


class ExpertHead:
    """Experts, gates and towers of one model; `pointer` is Triton's type of a pointer to its precision."""

    def __init__(
        self,
        sizes: ExpertSizes,
        pointer: str,
        capability: int = 90,
        *,
        tiles: tuple[ExpertTile, ExpertTile] | None = None,
        few: int = _FEW_PROGRAMS,
    ) -> None:
        """`tiles`, for spread and for whole experts, and `few` are chosen by precision and architecture."""
        sizes = sizes._replace(most_chunk=min(sizes.most_chunk, 32), narrow=True) if pointer == "*fp32" else sizes
        spread, whole = tiles or _tiles(pointer, capability)
        self.sizes = sizes
        self._few = few
        self._whole = _Way(sizes, pointer, whole, sizes.chunks)
        # In fp32 the two ways gave different bits on a GPU.
        spreads = pointer != "*fp32" and 1 < sizes.chunks <= _MOST_PARTS
        self._spread = _Way(sizes, pointer, spread, 1) if spreads else self._whole

    @property
    def kernels(self) -> tuple[TritonKernel, ...]:
        return tuple(kernel for way in dict.fromkeys((self._whole, self._spread)) for kernel in way.kernels)

    def pack(self, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> ExpertWeights:
        """From the tensors of an expert head by its own names (`experts_in.weight`, `towers.out.bias`, ...)."""
        packed = _packed({name: tensor.detach().cpu().float() for name, tensor in weights.items()}, self.sizes)
        *matrices, vectors = packed
        return ExpertWeights._make(
            [matrix.to(device, dtype).contiguous() for matrix in matrices] + [vectors.to(device)]
        )

    def work(self, users: int, candidates: int, device: torch.device) -> ExpertWork:
        """Memory for launches of up to `candidates` rows per user."""
        sizes = self.sizes
        parts = (users, candidates, sizes.experts * self._way(users, candidates).parts, sizes.dim_padded)
        shares = (users, candidates, sizes.tasks, sizes.experts_padded)
        return ExpertWork(torch.empty(parts, device=device), torch.empty(shares, device=device))

    def launch(
        self, runtime: Runtime, weights: ExpertWeights, work: ExpertWork, words: Tensor, wide: Tensor, scores: Tensor
    ) -> None:
        """Scores of all live candidates from `wide` `[users, rows, inputs]`, rows of which are candidates.

        `scores` fp32 `[users, candidates, tasks]`; counts are read from the headers at the start of `words`.
        """
        users, candidates, _ = scores.shape
        room = work.parts.shape[1]
        way = self._way(users, room)
        runtime.launch(
            way.experts,
            (self.sizes.experts * way.parts + self.sizes.tasks // way.gates, -(-candidates // way.rows), users),
            *(words, wide, weights.first, weights.second, weights.gates, weights.vectors, *work),
            *(wide.stride(0), wide.stride(1), room),
        )
        runtime.launch(
            way.towers,
            (-(-candidates // way.candidates_each), self.sizes.tasks // way.tasks_each, users),
            *(words, weights.towers, weights.vectors, *work, scores, room, candidates),
        )

    def _way(self, users: int, candidates: int) -> _Way:
        programs = users * -(-candidates // self._whole.rows) * self.sizes.experts
        return self._spread if programs < self._few else self._whole


def _tiles(pointer: str, capability: int) -> tuple[ExpertTile, ExpertTile]:
    """For spread and for whole experts."""
    if pointer == "*fp32":
        return _FP32, _FP32
    return SPREAD, WHOLE if capability in (90, 100, 103) else _WHOLE_SMALL


class _Way:
    """The two kernels, for experts in `parts` programs each."""

    def __init__(self, sizes: ExpertSizes, pointer: str, tile: ExpertTile, inside: int) -> None:
        self.rows = tile.rows
        self.parts = sizes.chunks // inside
        self.gates = 1 if self.parts > 1 else sizes.tasks
        self.tasks_each = 1 if self.parts > 1 else sizes.tasks
        self.candidates_each = _MIXED_EACH if self.parts > 1 else _MIXED_TILE
        self.experts = _experts(sizes, pointer, tile, inside, self.gates)
        self.towers = _towers(sizes, pointer, self)

    @property
    def kernels(self) -> tuple[TritonKernel, ...]:
        return (self.experts, self.towers)


def _experts(sizes: ExpertSizes, pointer: str, tile: ExpertTile, inside: int, gates: int) -> TritonKernel:
    matrices = dict.fromkeys(("wide", "first", "second", "gates"), pointer)
    vectors = dict.fromkeys(("vectors", "parts", "shares"), "*fp32")
    integers = dict.fromkeys(("user_stride", "row_stride", "room"), "i32")
    return TritonKernel(
        name=f"experts_{inside}_{tile.rows}",
        function=experts,
        signature={"words": "*i32", **matrices, **vectors, **integers},
        constants={
            "INPUTS": sizes.inputs,
            "INPUTS_PADDED": sizes.inputs_padded,
            "EXPERTS": sizes.experts,
            "EXPERTS_PADDED": sizes.experts_padded,
            "HIDDEN": sizes.hidden_padded,
            "CHUNK": sizes.chunk,
            "INSIDE": inside,
            "DIM": sizes.dim_padded,
            "TASKS": sizes.tasks,
            "HEADER_WORDS": sizes.header_words,
            "COUNT_WORD": sizes.count_word,
            "TILE": tile.rows,
            "STEP": sizes.step,
            "RESIDENT": sizes.resident,
            "GATES": gates,
        },
        warps=tile.warps,
        stages=tile.stages,
        multiples_of_16=frozenset(("user_stride", "row_stride")) if sizes.inputs % 16 == 0 else frozenset(),
    )


def _towers(sizes: ExpertSizes, pointer: str, way: _Way) -> TritonKernel:
    vectors = dict.fromkeys(("vectors", "parts", "shares", "scores"), "*fp32")
    return TritonKernel(
        name=f"mixed_towers_{way.parts}",
        function=mixed_towers,
        signature={"words": "*i32", "towers": pointer, **vectors, "room": "i32", "candidates": "i32"},
        constants={
            "EXPERTS": sizes.experts,
            "EXPERTS_PADDED": sizes.experts_padded,
            "PARTS": way.parts,
            "DIM": sizes.dim_padded,
            "TASKS": sizes.tasks,
            "SIGMOIDS": sizes.sigmoids,
            "TOWER_HIDDEN": sizes.tower_padded,
            "TOWER_CHUNK": sizes.tower_chunk,
            "BIASES": sizes.experts * sizes.hidden_padded,
            "HEADER_WORDS": sizes.header_words,
            "COUNT_WORD": sizes.count_word,
            "TILE": _MIXED_TILE,
            "TASKS_EACH": way.tasks_each,
            "TOGETHER": sizes.together,
            "EACH": way.candidates_each,
        },
        warps=4,
        stages=3,
    )


def _packed(weights: dict[str, Tensor], sizes: ExpertSizes) -> tuple[Tensor, ...]:
    """The fields of `ExpertWeights`, in fp32 on the CPU."""
    first = _sized(weights["experts_in.weight"].transpose(1, 2), sizes.inputs_padded, sizes.hidden_padded)
    second = _sized(weights["experts_out.weight"].transpose(1, 2), sizes.hidden_padded, sizes.dim_padded)
    gates = _sized(weights["gates.weight"].transpose(1, 2), sizes.inputs_padded, sizes.experts_padded)
    towers = _sized(weights["towers.hidden.weight"].transpose(1, 2), sizes.dim_padded, sizes.tower_padded)
    vectors = (
        _sized(weights["experts_in.bias"], sizes.experts, sizes.hidden_padded).flatten(),
        _sized(weights["experts_out.bias"], sizes.experts_padded, sizes.dim_padded).flatten(),
        _sized(weights["gates.bias"], sizes.tasks, sizes.experts_padded).flatten(),
        packed_vectors(weights, "towers.", sizes.tower_padded - sizes.tower_hidden),
    )
    return first, second, gates, towers, torch.cat(vectors)


def _sized(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros behind the last two dimensions, up to these sizes."""
    return torch.nn.functional.pad(tensor, (0, columns - tensor.shape[-1], 0, rows - tensor.shape[-2]))
