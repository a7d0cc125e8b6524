"""Multi-task head: shared experts, mixed for each task by its gate (MMoE), then a tower per task.

Two launches. In the first every program does one expert for a tile of candidates, and one of them the gates; in the
second the experts' outputs are mixed and sent through the towers.
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

__all__ = ["ExpertHead", "ExpertSizes", "ExpertTile", "ExpertWeights", "ExpertWork"]

_MIXED_TILE = 16


class ExpertTile(NamedTuple):
    """Candidates, warps and pipeline stages of one program."""

    rows: int
    warps: int
    stages: int


_TILE = ExpertTile(128, 8, 2)
_SMALL = ExpertTile(64, 8, 2)
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
    """Between the two launches, fp32: `outputs` `[users, candidates, experts, dim]`, `shares`
    `[users, candidates, tasks, experts]`."""

    outputs: Tensor
    shares: Tensor


class ExpertHead:
    """Experts, gates and towers of one model; `pointer` is Triton's type of a pointer to its precision."""

    def __init__(
        self, sizes: ExpertSizes, pointer: str, capability: int = 90, *, tile: ExpertTile | None = None
    ) -> None:
        """`tile` is chosen by precision and architecture."""
        sizes = sizes._replace(most_chunk=min(sizes.most_chunk, 32), narrow=True) if pointer == "*fp32" else sizes
        self.sizes = sizes
        self._tile = tile or _tile(pointer, capability)
        self._experts = _experts(sizes, pointer, self._tile)
        self._towers = _towers(sizes, pointer)

    @property
    def kernels(self) -> tuple[TritonKernel, ...]:
        return (self._experts, self._towers)

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
        outputs = (users, candidates, sizes.experts, sizes.dim_padded)
        shares = (users, candidates, sizes.tasks, sizes.experts_padded)
        return ExpertWork(torch.empty(outputs, device=device), torch.empty(shares, device=device))

    def launch(
        self, runtime: Runtime, weights: ExpertWeights, work: ExpertWork, words: Tensor, wide: Tensor, scores: Tensor
    ) -> None:
        """Scores of all live candidates from `wide` `[users, rows, inputs]`, rows of which are candidates.

        `scores` fp32 `[users, candidates, tasks]`; counts are read from the headers at the start of `words`.
        """
        users, candidates, _ = scores.shape
        room = work.outputs.shape[1]
        runtime.launch(
            self._experts,
            (self.sizes.experts + 1, -(-candidates // self._tile.rows), users),
            *(words, wide, weights.first, weights.second, weights.gates, weights.vectors, *work),
            *(wide.stride(0), wide.stride(1), room),
        )
        runtime.launch(
            self._towers,
            (-(-candidates // _MIXED_TILE), users),
            *(words, weights.towers, weights.vectors, *work, scores, room, candidates),
        )


def _tile(pointer: str, capability: int) -> ExpertTile:
    if pointer == "*fp32":
        return _FP32
    return _TILE if capability in (90, 100, 103) else _SMALL


def _experts(sizes: ExpertSizes, pointer: str, tile: ExpertTile) -> TritonKernel:
    matrices = dict.fromkeys(("wide", "first", "second", "gates"), pointer)
    vectors = dict.fromkeys(("vectors", "outputs", "shares"), "*fp32")
    integers = dict.fromkeys(("user_stride", "row_stride", "room"), "i32")
    return TritonKernel(
        name=f"experts_{tile.rows}",
        function=experts,
        signature={"words": "*i32", **matrices, **vectors, **integers},
        constants={
            "INPUTS": sizes.inputs,
            "INPUTS_PADDED": sizes.inputs_padded,
            "EXPERTS": sizes.experts,
            "EXPERTS_PADDED": sizes.experts_padded,
            "HIDDEN": sizes.hidden_padded,
            "CHUNK": sizes.chunk,
            "DIM": sizes.dim_padded,
            "TASKS": sizes.tasks,
            "HEADER_WORDS": sizes.header_words,
            "COUNT_WORD": sizes.count_word,
            "TILE": tile.rows,
            "STEP": sizes.step,
            "RESIDENT": sizes.resident,
        },
        warps=tile.warps,
        stages=tile.stages,
        multiples_of_16=frozenset(("user_stride", "row_stride")) if sizes.inputs % 16 == 0 else frozenset(),
    )


def _towers(sizes: ExpertSizes, pointer: str) -> TritonKernel:
    vectors = dict.fromkeys(("vectors", "outputs", "shares", "scores"), "*fp32")
    return TritonKernel(
        name="mixed_towers",
        function=mixed_towers,
        signature={"words": "*i32", "towers": pointer, **vectors, "room": "i32", "candidates": "i32"},
        constants={
            "EXPERTS": sizes.experts,
            "EXPERTS_PADDED": sizes.experts_padded,
            "DIM": sizes.dim_padded,
            "TASKS": sizes.tasks,
            "SIGMOIDS": sizes.sigmoids,
            "TOWER_HIDDEN": sizes.tower_padded,
            "TOWER_CHUNK": sizes.tower_chunk,
            "BIASES": sizes.experts * sizes.hidden_padded,
            "HEADER_WORDS": sizes.header_words,
            "COUNT_WORD": sizes.count_word,
            "TILE": _MIXED_TILE,
            "TOGETHER": sizes.together,
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
