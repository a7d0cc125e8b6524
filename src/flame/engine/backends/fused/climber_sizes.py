"""The sizes of Climber's layers, as their kernels need them."""

from __future__ import annotations

from typing import NamedTuple

from flame.engine.backends.fused.input_sizes import header_of
from flame.engine.backends.fused.precision import Precision
from flame.engine.kernels.attention import BiasSizes
from flame.engine.kernels.rows import Header
from flame.engine.spec import ModelSpec


class LayerSizes(NamedTuple):
    """Of all layers of all blocks; `norm_last` is the wiring of Climber's own figure."""

    header: Header
    precision: Precision
    layers: int
    blocks: int
    heads: int
    dim: int
    ffn: int
    scenarios: int
    causal: bool
    norm_last: bool
    bias: BiasSizes | None

    @classmethod
    def of(cls, spec: ModelSpec, precision: Precision) -> LayerSizes:
        """The sizes of a Climber."""
        assert spec.climber is not None
        sizes, bias = spec.climber, spec.climber.relative_bias
        return cls(
            header=header_of(spec),
            precision=precision,
            layers=sizes.layers,
            blocks=len(spec.input.sequences),
            heads=sizes.heads,
            dim=sizes.dim,
            ffn=sizes.ffn,
            scenarios=spec.input.scenarios,
            causal=sizes.causal,
            norm_last=sizes.wiring == "climber",
            bias=BiasSizes(bias.positions, bias.time_buckets) if bias else None,
        )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads
