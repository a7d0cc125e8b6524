"""All layers of all blocks of all users of a Climber in one launch: CUDA C++ for compute capability 9.0, bf16.

Everything of a layer is local to a row but the history's keys and values. So a CTA keeps its rows from the first layer
to the last, and only keys and values go through memory: each history row writes those of a layer into the user's state,
in the order in which tensor cores take them, and a counter per layer tells the other CTAs when they are all there.
Weights, keys and values reach a CTA through a ring of shared memory slots that one thread fills by bulk copies.

    x        bf16 [users, blocks, events + candidates, dim], in place: candidate rows become the last layer's output,
             event rows are left
    header   int32 [users, header words]: scenario, candidate count, and the lengths where events are taken
    states   int64 [users], addresses: int32 [64] header (capacity, then the blocks' lengths), body from byte 256 on:
             [layers, blocks, heads, capacity / 8] KB, each keys and values of 8 events as matrices of 8 x 8

`rank` takes events and candidates, `encode` events only and leaves the last layer after its keys and values, `score`
candidates only, against states (lengths, keys and values) that an encode wrote before. A candidate's bits are the same
in rank and in encode and score, in every variant, and whatever else is in the launch: its sums run over the history in
order, 16 keys at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from flame.engine.kernels.climber_stack.packing import pack
from flame.engine.kernels.climber_stack.sizes import MOST_PAIRS, StackHeader, StackSizes, unsupported
from flame.engine.kernels.climber_stack.variants import VARIANTS, Mode, Variant, choose, possible
from flame.engine.kernels.kernel import CudaKernel, Runtime
from flame.engine.kernels.processors import processors_of

__all__ = ["ClimberStack", "Mode", "StackHeader", "StackScratch", "StackSizes", "Variant", "kernels", "unsupported"]

_MODES: dict[Mode, int] = {"rank": 0, "encode": 1, "score": 2}
_LAUNCH = struct.Struct("6q5i4x")


def kernels(sizes: StackSizes, header: StackHeader) -> tuple[CudaKernel, ...]:
    """One per variant."""
    return tuple(variant.kernel(sizes, header) for variant in VARIANTS if variant.fits(sizes))


class StackScratch:
    """Tickets and counters of launches that run one after the other, int32.

    A launch takes tickets while the one before it may still be running, so they use two halves in turn.
    """

    def __init__(self, words: int, device: torch.device) -> None:
        self.words = words
        self._halves = torch.zeros((2, words), dtype=torch.int32, device=device)
        self._turn = 0

    def next(self) -> Tensor:
        """The next launch's."""
        self._turn ^= 1
        return self._halves[self._turn]


class ClimberStack:
    """The launches of one model, with its weights packed on the runtime's device.

    `concurrent` is the most launches that may be under way at the same time, each with a scratch of its own; more of
    them could wait for each other for ever. Any thread may launch.
    """

    def __init__(
        self,
        sizes: StackSizes,
        header: StackHeader,
        runtime: Runtime,
        weights: Mapping[str, Tensor],
        concurrent: int = 4,
        processors: int | None = None,
    ) -> None:
        assert unsupported(sizes) is None, unsupported(sizes)
        self.sizes = sizes
        self._header = header
        self._runtime = runtime
        self._packed = pack(sizes, weights)
        self._packed = type(self._packed)(*(tensor.to(runtime.device) for tensor in self._packed))
        self._kernels = {variant: variant.kernel(sizes, header) for variant in VARIANTS if variant.fits(sizes)}
        self._concurrent = concurrent
        self._processors = processors or processors_of(runtime.device)

    def kernels(self) -> tuple[CudaKernel, ...]:
        """One per variant."""
        return tuple(self._kernels.values())

    def state_bytes(self, capacity: int) -> int:
        """Bytes of a state's body for `capacity` events per sequence."""
        return self.sizes.state_bytes(capacity)

    def scratch(self, users: int) -> StackScratch:
        """Memory of launches of up to `users` users, which must run one after the other."""
        return StackScratch(self.sizes.scratch_words(users), self._runtime.device)

    def variants(self, mode: Mode, users: int, events: int, candidates: int) -> tuple[Variant, ...]:
        """What may run such launches, the best guess first; all give the same bits."""
        variants = possible(self.sizes, mode, events, self._processors, self._concurrent)
        assert variants, f"{self._concurrent} launches with {events} events do not fit at a time"
        guess = choose(variants, mode, users * self.sizes.blocks, events, candidates, self._processors)
        return (guess, *(variant for variant in variants if variant != guess))

    def launch(
        self,
        mode: Mode,
        x: Tensor,
        header: Tensor,
        states: Tensor,
        scratch: StackScratch,
        users: int,
        events: int,
        candidates: int,
        variant: Variant | None = None,
    ) -> None:
        """Puts one launch on the current stream; `events` and `candidates` are the rows of `x`, padded as it is."""
        pairs = users * self.sizes.blocks
        assert pairs <= MOST_PAIRS, f"{users} users with {self.sizes.blocks} blocks; at most {MOST_PAIRS} pairs"
        assert scratch.words >= self.sizes.scratch_words(users), f"scratch was not made for {users} users"
        chosen = variant or self.variants(mode, users, events, candidates)[0]
        grid = pairs * _tiles(chosen, mode, events, candidates)
        if not grid:
            return
        argument = _LAUNCH.pack(
            *(tensor.data_ptr() for tensor in (x, *self._packed, header, states, scratch.next())),
            self._header.words,
            users,
            events,
            events + candidates,
            _MODES[mode],
        )
        self._runtime.launch(self._kernels[chosen], (grid,), argument)


def _tiles(variant: Variant, mode: Mode, events: int, candidates: int) -> int:
    """The most CTAs that one user's block can need: strips of events and of candidates are counted apart."""
    strip = 16 * variant.tiles
    strips = (0 if mode == "score" else -(-events // strip)) + (0 if mode == "encode" else -(-candidates // strip))
    return -(-strips * strip // variant.rows)
