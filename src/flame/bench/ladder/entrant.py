"""What takes part in the ladder: one variant of one part and kind, ready to be launched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flame.bench.ladder.clock import Run
from flame.errors import FlameError


class Refused(FlameError):
    """A variant cannot run here, or gave other scores than the oracle."""

    kind = "variant_refused"


@dataclass(frozen=True, slots=True)
class Entrant:
    """`run` puts one launch on the current stream; `graph` says whether it is captured or launched as it is.

    `found` gives what the last launch left for the candidates that were asked for: scores `[pairs, tasks]`, or for
    the stack its rows `[pairs, blocks * dim]`; None where that is not this model's (`note` says why). `launch` is the
    same with copies from and to the host, waited for. `before` is put on the stream before every launch and not timed.
    """

    variant: str
    run: Run
    graph: bool
    build_s: float
    part: str = "model"
    kind: str = "rank"
    precision: str = "bf16"
    found: Callable[[], Tensor] | None = None
    launch: Run | None = None
    before: Run | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """Unique among the entrants of a case."""
        return f"{self.variant} {self.part} {self.kind}"

    @property
    def ours(self) -> bool:
        return self.variant.startswith("flame")
