"""What the layers of an HSTU are in the fused backend: widths, where columns lie, and the layout of a state.

activations  [users, 1, rows, row]             u, o, y (heads * linear_dim each), q; o takes the place of q where
                                               both are as wide: a program reads its q before it writes its o
own          [users, 1, candidates, own_row]   a candidate's own k, v
state body   keys [layers, heads, capacity, attention_dim], values [layers, heads, capacity, linear_dim]
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.engine.backends.fused.input_sizes import header_of
from flame.engine.kernels.linear import Part, StatePart
from flame.engine.kernels.pointwise_attention import AttentionColumns
from flame.engine.kernels.rows import Header
from flame.engine.spec import HstuConfig, ModelSpec

EPS = 1e-6


@dataclass(frozen=True, slots=True)
class HstuSizes:
    """Sizes of one model's layers."""

    config: HstuConfig
    header: Header
    scale: float

    @classmethod
    def of(cls, spec: ModelSpec) -> HstuSizes:
        assert spec.hstu is not None
        return cls(spec.hstu, header_of(spec), 1 / (spec.input.sequence_capacity(spec.input.max_history) + 1))

    @property
    def value(self) -> int:
        """Width of u, o, y and v."""
        return self.config.heads * self.config.linear_dim

    @property
    def attention(self) -> int:
        """Width of q and k."""
        return self.config.heads * self.config.attention_dim

    @property
    def columns(self) -> AttentionColumns:
        """Where q, o, k and v lie."""
        shared = self.value == self.attention
        return AttentionColumns(
            row=3 * self.value + (0 if shared else self.attention),
            q_at=self.value if shared else 3 * self.value,
            o_at=self.value,
            own_row=self.attention + self.value,
            k_at=0,
            v_at=self.attention,
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The products u, q, k and v: u and q to the activations, k and v to the states or to a candidate's own."""
        config = self.config
        keys = StatePart(0, self.attention, config.heads, config.attention_dim)
        values = StatePart(config.layers * self.attention, self.value, config.heads, config.linear_dim)
        return (
            Part(self.value, 0, "silu"),
            Part(self.attention, self.columns.q_at),
            Part(self.attention, self.columns.k_at, state=keys),
            Part(self.value, self.columns.v_at, state=values),
        )

    @property
    def state_elements(self) -> int:
        """Elements of a state's body for each event slot."""
        return self.config.layers * (self.attention + self.value)
