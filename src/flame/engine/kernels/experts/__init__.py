"""Multi-task head: shared experts, mixed for each task by its gate (MMoE), then a tower per task.

Two launches. In the first every program does some hidden units of one expert for a tile of candidates (one program
does the gates); in the second the experts' parts are added in a fixed order, mixed and sent through the towers.
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

__all__ = ["ExpertHead", "ExpertSizes", "ExpertWeights", "ExpertWork"]

_TILE = 64
_MIXED_TILE = 16


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

    def __init__(self, sizes: ExpertSizes, pointer: str) -> None:
        self.sizes = sizes
        self._experts = _experts(sizes, pointer)
        self._towers = _towers(sizes, pointer)

    @property
    def kernels(self) -> tuple[TritonKernel, ...]:
        return (self._experts, self._towers)

    def pack(self, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> ExpertWeights:
        """From the tensors of an expert head by its own names (`experts_in.weight`, `towers.out.bias`, ...)."""
        packed = _packed({name: tensor.detach().cpu().float() for name, tensor in weights.items()}, self.sizes)
        *matrices, vectors = packed
        return ExpertWeights(*(matrix.to(device, dtype).contiguous() for matrix in matrices), vectors.to(device))

    def work(self, users: int, candidates: int, device: torch.device) -> ExpertWork:
        """Memory for launches of up to `candidates` rows per user."""
        sizes = self.sizes
        parts = (users, candidates, sizes.experts * sizes.parts, sizes.dim_padded)
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
        runtime.launch(
            self._experts,
            (self.sizes.experts * self.sizes.parts + 1, -(-candidates // _TILE), users),
            *(words, wide, weights.first, weights.second, weights.gates, weights.vectors, *work),
            *(wide.stride(0), wide.stride(1), room),
        )
        runtime.launch(
            self._towers,
            (-(-candidates // _MIXED_TILE), users),
            *(words, weights.towers, weights.vectors, *work, scores, room, candidates),
        )


def _experts(sizes: ExpertSizes, pointer: str) -> TritonKernel:
    matrices = dict.fromkeys(("wide", "first", "second", "gates"), pointer)
    vectors = dict.fromkeys(("vectors", "parts", "shares"), "*fp32")
    integers = dict.fromkeys(("user_stride", "row_stride", "room"), "i32")
    return TritonKernel(
        name="experts",
        function=experts,
        signature={"words": "*i32", **matrices, **vectors, **integers},
        constants={
            "INPUTS": sizes.inputs,
            "INPUTS_PADDED": sizes.inputs_padded,
            "EXPERTS": sizes.experts,
            "EXPERTS_PADDED": sizes.experts_padded,
            "HIDDEN": sizes.hidden_padded,
            "PART": sizes.part,
            "CHUNK": sizes.chunk,
            "DIM": sizes.dim_padded,
            "TASKS": sizes.tasks,
            "HEADER_WORDS": sizes.header_words,
            "COUNT_WORD": sizes.count_word,
            "TILE": _TILE,
            "STEP": sizes.step,
            "RESIDENT": sizes.resident,
        },
        warps=4,
        stages=3,
        multiples_of_16=frozenset(("user_stride", "row_stride")) if sizes.inputs % 16 == 0 else frozenset(),
    )


def _towers(sizes: ExpertSizes, pointer: str) -> TritonKernel:
    vectors = dict.fromkeys(("vectors", "parts", "shares", "scores"), "*fp32")
    return TritonKernel(
        name="mixed_towers",
        function=mixed_towers,
        signature={"words": "*i32", "towers": pointer, **vectors, "room": "i32", "candidates": "i32"},
        constants={
            "EXPERTS": sizes.experts,
            "EXPERTS_PADDED": sizes.experts_padded,
            "PARTS": sizes.parts,
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
