"""The configurations of the kernels: all give the same bits, and the number of rows decides which is fastest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flame.engine.kernels.climber_stack.sizes import HEAD_DIM, StackHeader, StackSizes
from flame.engine.kernels.kernel import CudaKernel

Mode = Literal["rank", "encode", "score"]

_SOURCES = Path(__file__).parent / "cuda"
_SHARED = 228 * 1024
"""Bytes of a multiprocessor of compute capability 9.0."""
_PER_CTA = 1024 + 2560
"""Of these, what the driver and the kernels' static variables take for each CTA."""
_ONES = 128
"""A matrix of ones, by which "wide" sums up."""
_MOST_SLOTS = 10


@dataclass(frozen=True, slots=True)
class Variant:
    """One configuration.

    kind "team": all warps of a CTA share `tiles` tiles of 16 rows; "wide": each of `owners` groups of four warps has
    four, the warps that compute have `registers` registers, and `unroll` times 16 keys are in flight.
    """

    kind: Literal["team", "wide"]
    tiles: int
    owners: int = 1
    unroll: int = 4
    registers: int = 0

    @property
    def rows(self) -> int:
        """Rows of a CTA."""
        return 16 * self.tiles * self.owners

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.rows}"

    def slots(self, sizes: StackSizes) -> int:
        """Slots of the ring: as many as fit."""
        return min(_MOST_SLOTS, (_SHARED - _PER_CTA - self._working_bytes(sizes)) // sizes.slot_bytes)

    def fits(self, sizes: StackSizes) -> bool:
        """Whether the ring can hold what has to be there at a time."""
        return self.slots(sizes) >= (sizes.ffn_stages if self.kind == "team" else 3)

    def threads(self, sizes: StackSizes) -> int:
        return 32 * (sizes.dim // 8 + 1 if self.kind == "team" else 4 * self.owners + 4)

    def shared(self, sizes: StackSizes) -> int:
        """Dynamic shared memory of a CTA, in bytes."""
        return self.slots(sizes) * sizes.slot_bytes + self._working_bytes(sizes)

    def kernel(self, sizes: StackSizes, header: StackHeader) -> CudaKernel:
        """The kernel of this configuration."""
        return CudaKernel(
            name=f"climber-stack-{self.name}",
            source=str(_SOURCES / f"{self.kind}.cu"),
            entry=f"climber_{self.kind}",
            signature={"launch": "bytes"},
            defines=_defines(sizes, header) | self._defines(sizes),
            threads=self.threads(sizes),
            shared=self.shared(sizes),
            dependent=True,
        )

    def _working_bytes(self, sizes: StackSizes) -> int:
        """Beside the ring: x, y and the ones; of a team y, the hidden layer, and the second product in fp32 or x."""
        if self.kind == "wide":
            return self.rows * 4 * sizes.dim + _ONES
        return self.rows * (2 * sizes.dim + 2 * sizes.ffn + 4 * sizes.dim)

    def _defines(self, sizes: StackSizes) -> dict[str, int]:
        defines = {"SLOTS": self.slots(sizes)}
        if self.kind == "team":
            return defines | {"TILES": self.tiles}
        return defines | {"GROUPS": self.owners, "PIECE": 16 * self.unroll, "REGISTERS": self.registers}


def _defines(sizes: StackSizes, header: StackHeader) -> dict[str, int]:
    return {
        "LAYERS": sizes.layers,
        "BLOCKS": sizes.blocks,
        "HEADS": sizes.dim // HEAD_DIM,
        "FFN": sizes.ffn,
        "HIDDEN": sizes.hidden,
        "SCENARIOS": sizes.scenarios,
        "HEADER_SCENARIO": header.scenario,
        "HEADER_CANDIDATES": header.candidates,
        "HEADER_LENGTHS": header.lengths,
    }


_MANY_ROWS = Variant("wide", 4, owners=2, unroll=4, registers=240)
VARIANTS = (
    Variant("team", 1),
    Variant("team", 2),
    Variant("wide", 4, owners=1, unroll=4, registers=240),
    _MANY_ROWS,
    Variant("wide", 4, owners=3, unroll=2, registers=160),
)
"""In the order in which rising numbers of rows want them, as long as all CTAs run at once."""


def possible(sizes: StackSizes, mode: Mode, events: int, processors: int, concurrent: int) -> tuple[Variant, ...]:
    """The variants that may run with histories of up to `events` per sequence, `concurrent` launches at a time.

    The CTAs of a history wait for each other, so they all have to find a place: tickets give places in order, therefore
    every launch has at most one history that is not complete yet, and the CTAs of those must not fill the GPU.
    """
    most = (processors - 1) // concurrent + 1
    fitting = [variant for variant in VARIANTS if variant.fits(sizes)]
    return tuple(variant for variant in fitting if mode == "score" or -(-events // variant.rows) <= most)


def choose(
    variants: tuple[Variant, ...], mode: Mode, pairs: int, events: int, candidates: int, processors: int
) -> Variant:
    """The first guess whose CTAs all run at once; else "wide" with 128 rows, which spends the least time on a row.

    `pairs` is users times blocks.
    """
    rows = (0 if mode == "score" else events) + (0 if mode == "encode" else candidates)
    for variant in variants:
        if pairs * -(-rows // variant.rows) <= processors:
            return variant
    return _MANY_ROWS if _MANY_ROWS in variants else variants[-1]
