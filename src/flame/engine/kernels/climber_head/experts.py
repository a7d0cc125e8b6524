"""Experts, gates, mixture and towers in one launch or two."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.kernels.climber_head.expert_stages import CHUNK, DIM, EXPERTS, PAIR, hidden_units, stages
from flame.engine.kernels.climber_head.sources import GROUP_THREADS, SHARED, STATIC, headers, source
from flame.engine.kernels.experts.sizes import ExpertSizes
from flame.engine.kernels.kernel import CudaKernel, Runtime
from flame.engine.kernels.processors import HOPPER
from flame.engine.kernels.towers import sigmoid_bits

_LAUNCH = struct.Struct("6q6i")
_UNIT = 16
_GROUP_ROWS = 64
_MOST_ROWS = 128
"""Of a tile."""
_MOST_INPUTS = 192
_MOST_TASKS = 4
_MOST_SLOTS = 6


def experts_fit(sizes: ExpertSizes) -> bool:
    """Whether `ClimberExperts` is for these sizes."""
    narrow = sizes.inputs % 32 == 0 and sizes.inputs <= _MOST_INPUTS and sizes.tasks <= _MOST_TASKS
    return narrow and sizes.experts == EXPERTS and max(sizes.dim, sizes.tower_hidden) <= DIM


class ExpertTile(NamedTuple):
    """A CTA has `groups` of 64 rows, and `split` of them share the experts, or parts of them, of the same rows."""

    groups: int
    split: int

    @property
    def rows(self) -> int:
        return self.groups * _GROUP_ROWS

    def parts(self, sizes: ExpertSizes) -> int:
        """Parts of an expert's outputs that are added by who mixes them."""
        return hidden_units(sizes) // PAIR if self.split > EXPERTS else 1

    def fits(self, sizes: ExpertSizes) -> bool:
        """Whether all CTAs have as much to do."""
        return EXPERTS * hidden_units(sizes) // PAIR % self.split == 0


_TILES = tuple(ExpertTile(*tile) for tile in ((1, 32), (1, 16), (1, 8), (2, 8), (2, 4), (2, 2), (2, 1)))
"""In the order in which rising numbers of candidates want them."""


def tiles(sizes: ExpertSizes) -> tuple[ExpertTile, ...]:
    """Those for these sizes; all give the same bits."""
    return tuple(tile for tile in _TILES if tile.fits(sizes))


class ClimberExperts:
    """Experts, gates and towers of one model: one launch, or two where experts are shared by several CTAs."""

    def __init__(self, sizes: ExpertSizes, processors: int = HOPPER, *, tile: ExpertTile | None = None) -> None:
        """`processors` decides how many CTAs share the experts; `tile` is for tests and measurements."""
        assert experts_fit(sizes), f"these sizes are for other kernels: {sizes}"
        self.sizes = sizes
        self._processors = processors
        self._experts = {one: _experts_kernel(sizes, one) for one in ((tile,) if tile else tiles(sizes))}
        shared = {one: one.parts(sizes) for one in self._experts if one.split > 1}
        self._towers = {parts: _towers_kernel(sizes, parts) for parts in sorted(set(shared.values()))}

    @property
    def kernels(self) -> tuple[CudaKernel, ...]:
        return (*self._experts.values(), *self._towers.values())

    def pack(self, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The stages of all products, uint8, from the tensors of an expert head by its own names."""
        assert dtype == torch.bfloat16, "the kernel multiplies bf16"
        own = {name: tensor.detach().cpu().float() for name, tensor in weights.items()}
        return stages(self.sizes, own).to(device)

    def work(self, users: int, candidates: int, device: torch.device) -> Tensor:
        """What the experts leave to the towers, for launches of up to `candidates` rows per user."""
        tile = self._tile(users, candidates)
        outputs = EXPERTS * tile.parts(self.sizes) if tile.split > 1 else 0
        return torch.empty(users, _units(candidates), outputs, _UNIT, DIM, dtype=torch.bfloat16, device=device)

    def launch(
        self, runtime: Runtime, weights: Tensor, work: Tensor, words: Tensor, wide: Tensor, scores: Tensor
    ) -> None:
        """As `flame.engine.kernels.experts.ExpertHead.launch`, columns of `wide` in the order of lanes."""
        users, candidates, _ = scores.shape
        rows = wide.shape[1]
        tile = self._tile(users, rows)
        count, units = -(-candidates // tile.rows), _units(rows)
        user, row = (stride * wide.element_size() for stride in wide.stride()[:2])
        argument = _LAUNCH.pack(
            *(tensor.data_ptr() for tensor in (wide, weights, words, scores, work)),
            *(user, row, rows, self.sizes.header_words, candidates, count, units),
        )
        runtime.launch(self._experts[tile], (users * count * tile.split,), argument)
        if tile.split > 1:
            runtime.launch(self._towers[tile.parts(self.sizes)], (users * units,), argument)

    def _tile(self, users: int, candidates: int) -> ExpertTile:
        """The first whose CTAs all run at once; else the last, which reads the weights least often."""
        for tile in self._experts:
            if users * -(-candidates // tile.rows) * tile.split <= self._processors:
                return tile
        return list(self._experts)[-1]


def _experts_kernel(sizes: ExpertSizes, tile: ExpertTile) -> CudaKernel:
    first = 2 * sizes.inputs * CHUNK + 4 * CHUNK
    tower = 2 * CHUNK * DIM + 8 * DIM + 16
    outputs = tile.rows * EXPERTS * DIM * 2 if tile.split == 1 else 0
    slots = min(_MOST_SLOTS, (SHARED - STATIC - outputs) // (first + tower))
    return CudaKernel(
        name=f"climber-experts-{tile.groups}-{tile.split}",
        source=source("experts.cu"),
        entry="climber_experts",
        signature={"launch": "bytes"},
        defines=_defines(sizes) | {"SPLIT": tile.split, "GROUPS": tile.groups, "SLOTS": slots},
        threads=(tile.groups + 1) * GROUP_THREADS,
        shared=slots * (first + tower) + outputs,
        headers=headers(),
        dependent=True,
    )


def _towers_kernel(sizes: ExpertSizes, parts: int) -> CudaKernel:
    """After any split that leaves so many parts."""
    return CudaKernel(
        name=f"climber-towers-{parts}",
        source=source("towers.cu"),
        entry="climber_towers",
        signature={"launch": "bytes"},
        defines=_defines(sizes) | {"SPLIT": EXPERTS * parts},
        threads=2 * GROUP_THREADS,
        shared=0,
        headers=headers(),
        dependent=True,
    )


def _defines(sizes: ExpertSizes) -> dict[str, int]:
    return {
        "INPUTS": sizes.inputs,
        "HIDDEN": hidden_units(sizes),
        "TASKS": sizes.tasks,
        "SIGMOIDS": sigmoid_bits(sizes.sigmoids),
        "HEADER_COUNT": sizes.count_word,
    }


def _units(candidates: int) -> int:
    """Of 16 rows, in whole tiles."""
    return -(-candidates // _MOST_ROWS) * _MOST_ROWS // _UNIT
