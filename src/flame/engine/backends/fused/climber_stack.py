"""Climber's layers in one launch, where the kernels of `flame.engine.kernels.climber_stack` know the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from flame.engine.backends.fused.climber_sizes import LayerSizes
from flame.engine.backends.fused.program import MOST_LAUNCHES
from flame.engine.backends.fused.rows import EVENT_TILE, Rows, padded
from flame.engine.kernels.climber_stack import (
    ClimberStack,
    Mode,
    StackHeader,
    StackScratch,
    StackSizes,
    kernels,
    unsupported,
)
from flame.engine.kernels.climber_stack.sizes import MOST_PAIRS
from flame.engine.kernels.climber_stack.variants import Variant, possible
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.kernels.processors import HOPPER
from flame.engine.kernels.rows import Selection
from flame.engine.spec import ModelSpec
from flame.layout import CANDIDATES, LENGTHS, SCENARIO

_MODES: dict[Selection, Mode] = {"all": "rank", "events": "encode", "candidates": "score"}
_CAPABILITY = 90


class StackWork(NamedTuple):
    """What launches of a profile work on."""

    rows: Rows
    words: Tensor
    x: Tensor
    scratch: StackScratch


class StackLayers:
    """All layers of all blocks in one launch."""

    ages = None

    def __init__(
        self, spec: ModelSpec, sizes: LayerSizes, runtime: Runtime, weights: Mapping[str, Tensor] | None
    ) -> None:
        self._sizes = _stack_sizes(sizes)
        self._header = StackHeader(spec.record.header_words, SCENARIO, CANDIDATES, LENGTHS)
        self._taken: dict[tuple[Rows, Mode], Variant] = {}
        self._stack = None
        if weights is not None:
            self._stack = ClimberStack(self._sizes, self._header, runtime, weights, concurrent=MOST_LAUNCHES)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return kernels(self._sizes, self._header)

    def state_bytes(self, capacity: int) -> int:
        """Bytes of a state's body."""
        return self._sizes.state_bytes(capacity)

    def work(self, rows: Rows, words: Tensor, x: Tensor) -> StackWork:
        """Memory for launches with these rows over `words` and `x`."""
        assert self._stack is not None
        return StackWork(rows, words, x, self._stack.scratch(rows.users))

    def run(self, work: StackWork, states: Tensor, select: Selection) -> None:
        """From tokens in `x` to the last layer's candidates in `x`, events' keys and values into the states."""
        assert self._stack is not None
        rows = work.rows
        for users in self._groups(rows.users):
            self._stack.launch(
                _MODES[select],
                work.x[users.start :],
                work.words[users.start * self._header.words :],
                states[users.start :],
                work.scratch,
                len(users),
                rows.events,
                rows.candidates,
                self._taken.get((rows, _MODES[select])),
            )

    def ways(self, rows: Rows, select: Selection) -> dict[str, Variant]:
        """The variants that may run such launches, by name, the best guess first."""
        assert self._stack is not None
        users = len(next(self._groups(rows.users)))
        variants = self._stack.variants(_MODES[select], users, rows.events, rows.candidates)
        return {variant.name: variant for variant in variants}

    def take(self, rows: Rows, select: Selection, way: str) -> None:
        """Makes such launches run the variant of that name."""
        self._taken[rows, _MODES[select]] = self.ways(rows, select)[way]

    def _groups(self, users: int) -> Iterator[range]:
        """As many users at a time as a launch takes."""
        most = MOST_PAIRS // self._sizes.blocks
        for first in range(0, users, most):
            yield range(first, min(first + most, users))


def why_no_stack(spec: ModelSpec, sizes: LayerSizes, capability: int) -> str | None:
    """Why the layers of this model cannot be one launch; None where they can."""
    if capability != _CAPABILITY:
        return f"compute capability {capability}, only {_CAPABILITY} is known"
    if sizes.precision.name != "bf16":
        return f"precision {sizes.precision.name}, only bf16 is known"
    if sizes.causal or sizes.norm_last or sizes.bias:
        return "a causal history, Climber's own wiring or a relative bias"
    events = padded(spec.input.sequence_capacity(spec.input.max_history), EVENT_TILE)
    own = _stack_sizes(sizes)
    reason = unsupported(own)
    if reason is None and not possible(own, "rank", events, HOPPER, MOST_LAUNCHES):
        return f"sequences of up to {events} events, whose keys and values would be waited for for ever"
    return reason


def _stack_sizes(sizes: LayerSizes) -> StackSizes:
    return StackSizes(sizes.layers, sizes.blocks, sizes.heads, sizes.dim, sizes.ffn, sizes.scenarios)
