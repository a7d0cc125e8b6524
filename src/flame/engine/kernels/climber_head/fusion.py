"""Gated fusion of two blocks in one launch."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.kernels.climber_head.sources import GROUP_THREADS, SHARED, STATIC, headers, source
from flame.engine.kernels.climber_head.stages import fp32, matrix
from flame.engine.kernels.fusion import FusionWork
from flame.engine.kernels.fusion.sizes import FusionSizes
from flame.engine.kernels.kernel import CudaKernel, Runtime
from flame.engine.kernels.processors import HOPPER

_LAUNCH = struct.Struct("7q5i4x")
_LOG2_E = 1.4426950408889634
_CHUNK = 64
_HEAD = 32
_MOST_CHUNKS = 6
"""Of hidden units: the loop over them is unrolled, and with more its values leave the registers."""
_GROUP_CANDIDATES = 32
_MOST_SLOTS = 12
_SQUEEZED = (16, 32, 48, 64, 96)
"""Columns that a product may have."""


def fusion_fits(sizes: FusionSizes) -> bool:
    """Whether `ClimberFusion` is for these sizes."""
    narrow = sizes.head == _HEAD and sizes.heads <= 3 and _squeezed(sizes) in _SQUEEZED
    return narrow and sizes.blocks == 2 and sizes.ffn % _CHUNK == 0 and sizes.ffn <= _MOST_CHUNKS * _CHUNK


class ClimberFusionWeights(NamedTuple):
    """`stages` uint8, stage after stage; `scales` fp32 `[scenarios]`, log2(e) / temperature."""

    stages: Tensor
    scales: Tensor


class ClimberFusion:
    """The fusion of one model."""

    def __init__(self, sizes: FusionSizes, processors: int = HOPPER) -> None:
        """`processors` decides how many rows a CTA takes."""
        assert fusion_fits(sizes), f"these sizes are for other kernels: {sizes}"
        self.sizes = sizes
        self._processors = processors
        self._few, self._many = (_kernel(sizes, groups) for groups in (1, 2))

    @property
    def kernels(self) -> tuple[CudaKernel, ...]:
        return (self._few, self._many)

    def pack(self, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> ClimberFusionWeights:
        """From the tensors of a gated fusion by its own names (`layer.qkv.weight`, `squeeze.bias`, ...)."""
        assert dtype == torch.bfloat16, "the kernel multiplies bf16"
        own = {name.removeprefix("layer."): tensor.detach().cpu().float() for name, tensor in weights.items()}
        stages = [*_heads(self.sizes, own), *_chunks(self.sizes, own), *_gate(self.sizes, own)]
        scales = own["log_temperature"][0].neg().exp() * _LOG2_E
        return ClimberFusionWeights(torch.cat(stages).to(device), scales.to(device))

    def work(self, users: int, candidates: int, dtype: torch.dtype, device: torch.device) -> FusionWork:
        """Memory for launches of up to `candidates` rows per user."""
        return FusionWork(torch.empty(users, candidates, self.sizes.width, dtype=dtype, device=device))

    def launch(
        self,
        runtime: Runtime,
        weights: ClimberFusionWeights,
        work: FusionWork,
        words: Tensor,
        x: Tensor,
        first_row: int,
    ) -> Tensor:
        """As `flame.engine.kernels.fusion.Fusion.launch`, columns of the result in the order of lanes."""
        users, candidates, _ = work.wide.shape
        kernel = self._few if users * -(-candidates // _GROUP_CANDIDATES) <= self._processors else self._many
        tiles = -(-candidates // (_GROUP_CANDIDATES * kernel.defines["GROUPS"]))
        user, block, row = (stride * x.element_size() for stride in x.stride()[:3])
        argument = _LAUNCH.pack(
            *(tensor.data_ptr() for tensor in (x, work.wide, *weights, words)),
            *(user, block, row, first_row, self.sizes.header_words, candidates, tiles),
        )
        runtime.launch(kernel, (users * tiles,), argument)
        return work.wide


def _kernel(sizes: FusionSizes, groups: int) -> CudaKernel:
    """With as many slots as fit, at most one for each stage."""
    middle = groups * 2 * _GROUP_CANDIDATES * sizes.dim * 4
    slot = max(_stage_bytes(sizes))
    slots = min(_MOST_SLOTS, (SHARED - STATIC - middle) // slot, sizes.heads + sizes.ffn // _CHUNK + 2)
    return CudaKernel(
        name=f"climber-fusion-{groups}",
        source=source("fusion.cu"),
        entry="climber_fusion",
        signature={"launch": "bytes"},
        defines={
            "HEADS": sizes.heads,
            "FFN": sizes.ffn,
            "SQUEEZED": _squeezed(sizes),
            "SCENARIOS": sizes.scenarios,
            "RESIDUAL_FIRST": int(sizes.residual_first),
            "HEADER_SCENARIO": sizes.scenario_word,
            "HEADER_COUNT": sizes.count_word,
            "GROUPS": groups,
            "SLOTS": slots,
        },
        threads=(groups + 1) * GROUP_THREADS,
        shared=slots * slot + middle,
        headers=headers(),
        dependent=True,
    )


def _squeezed(sizes: FusionSizes) -> int:
    return -(-sizes.squeezed // 16) * 16


def _stage_bytes(sizes: FusionSizes) -> tuple[int, ...]:
    """Of a head, a chunk of hidden units, and the gate's two products."""
    dim, squeezed = sizes.dim, _squeezed(sizes)
    head = 6 * _HEAD * dim + 12 * _HEAD
    chunk = 4 * dim * _CHUNK + 4 * _CHUNK
    return head, chunk, 4 * dim * squeezed + 4 * squeezed + 12 * dim, 4 * squeezed * dim + 8 * dim


def _heads(sizes: FusionSizes, own: Mapping[str, Tensor]) -> list[Tensor]:
    """A head after the other: queries, keys and values, then their biases."""
    weight = own["qkv.weight"][0].view(3, sizes.heads, _HEAD, sizes.dim)
    bias = own["qkv.bias"][0].view(3, sizes.heads, _HEAD)
    return [
        part
        for head in range(sizes.heads)
        for part in (matrix(weight[:, head].reshape(-1, sizes.dim)), fp32(bias[:, head]))
    ]


def _chunks(sizes: FusionSizes, own: Mapping[str, Tensor]) -> list[Tensor]:
    """Columns of the feed-forward net's first product, rows of its second, biases of the first."""
    first, second, bias = own["ffn_in.weight"][0], own["ffn_out.weight"][0], own["ffn_in.bias"][0]
    units = [slice(start, start + _CHUNK) for start in range(0, sizes.ffn, _CHUNK)]
    return [part for unit in units for part in (matrix(first[unit]), matrix(second[:, unit]), fp32(bias[unit]))]


def _gate(sizes: FusionSizes, own: Mapping[str, Tensor]) -> list[Tensor]:
    """Squeeze, and the vectors of the layer's end; excite, a block after the other."""
    more = _squeezed(sizes) - sizes.squeezed
    squeeze = torch.nn.functional.pad(own["squeeze.weight"], (0, 0, 0, more))
    excite = torch.nn.functional.pad(own["excite.weight"], (0, more)).view(sizes.blocks, sizes.dim, -1)
    vectors = (own["ffn_out.bias"][0], own["norm.weight"][0], own["norm.bias"][0])
    return [
        matrix(squeeze),
        fp32(torch.nn.functional.pad(own["squeeze.bias"], (0, more))),
        *map(fp32, vectors),
        matrix(torch.cat([*excite], 1)),
        fp32(own["excite.bias"]),
    ]
