"""The towers of a model whose tasks share one input: the last norm, a small network per task, its activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.towers.triton import normed_towers

_TILE = 64
_HIDDEN_CHUNK = 128


class TowerSizes(NamedTuple):
    """`dim` columns, normed with `eps`, then per task `hidden` units and one output.

    `sigmoids` says for every task whether a sigmoid follows. The candidate count is word `count_word` of a header of
    `header_words`.
    """

    dim: int
    hidden: int
    sigmoids: tuple[bool, ...]
    header_words: int
    eps: float = 1e-6
    count_word: int = 1
    narrow: bool = False

    @property
    def tasks(self) -> int:
        return len(self.sigmoids)

    @property
    def tile(self) -> int:
        """Candidates of one program."""
        return 32 if self.narrow else _TILE

    @property
    def step(self) -> int:
        """Columns of a row that a program multiplies at a time."""
        return 16 if self.narrow else 64

    @property
    def chunk(self) -> int:
        """Hidden units that a program holds at a time."""
        return min(32 if self.narrow else _HIDDEN_CHUNK, max(16, 1 << (self.hidden - 1).bit_length()))

    @property
    def hidden_padded(self) -> int:
        return -(-self.hidden // self.chunk) * self.chunk


class TowerWeights(NamedTuple):
    """`hidden` `[tasks, dim, hidden]`; `vectors` fp32: the norm's weight and bias, then per task the hidden bias, the
    output weights and, alone, the output bias."""

    hidden: Tensor
    vectors: Tensor


class NormedTowers:
    """Final norm and towers of one model; `pointer` is Triton's type of a pointer to its precision."""

    def __init__(self, sizes: TowerSizes, pointer: str) -> None:
        self.sizes = sizes._replace(narrow=pointer == "*fp32")
        self._kernel = _kernel(self.sizes, pointer)

    @property
    def kernels(self) -> tuple[TritonKernel, ...]:
        return (self._kernel,)

    def pack(self, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> TowerWeights:
        """From `norm.weight`, `norm.bias` and the towers' `head.hidden.weight`, ..., `head.out.bias`."""
        own = {name: tensor.detach().cpu().float() for name, tensor in weights.items()}
        more = self.sizes.hidden_padded - self.sizes.hidden
        hidden = torch.nn.functional.pad(own["head.hidden.weight"].transpose(1, 2), (0, more))
        return TowerWeights(
            hidden.to(device, dtype).contiguous(),
            torch.cat([own["norm.weight"], own["norm.bias"], packed_vectors(own, "head.", more)]).to(device),
        )

    def launch(
        self, runtime: Runtime, weights: TowerWeights, words: Tensor, x: Tensor, first_row: int, scores: Tensor
    ) -> None:
        """Scores of all live candidates c from the rows `first_row + c` of `x` `[users, 1, rows, dim]`.

        `scores` fp32 `[users, candidates, tasks]`; counts are read from the headers at the start of `words`.
        """
        users, candidates, tasks = scores.shape
        runtime.launch(
            self._kernel,
            (-(-candidates // self.sizes.tile), tasks, users),
            *(words, x, weights.hidden, weights.vectors, scores, first_row, x.stride(0), x.stride(2), candidates),
        )


def packed_vectors(weights: Mapping[str, Tensor], prefix: str, more: int) -> Tensor:
    """Per task hidden bias, output weights (both with `more` zeros behind them) and output bias, in a row."""
    bias, out = weights[f"{prefix}hidden.bias"], weights[f"{prefix}out.weight"][:, 0]
    padded = torch.nn.functional.pad(torch.stack([bias, out], 1), (0, more))
    return torch.cat([padded.flatten(1), weights[f"{prefix}out.bias"]], 1).flatten()


def sigmoid_bits(sigmoids: tuple[bool, ...]) -> int:
    """Bit t is set where task t ends in a sigmoid."""
    return sum(1 << task for task, has in enumerate(sigmoids) if has)


def _kernel(sizes: TowerSizes, pointer: str) -> TritonKernel:
    integers = ("first_row", "user_stride", "row_stride", "candidates")
    return TritonKernel(
        name="normed_towers",
        function=normed_towers,
        signature={"words": "*i32", "x": pointer, "hidden": pointer, "vectors": "*fp32", "scores": "*fp32"}
        | dict.fromkeys(integers, "i32"),
        constants={
            "DIM": sizes.dim,
            "HIDDEN": sizes.hidden_padded,
            "TASKS": sizes.tasks,
            "SIGMOIDS": sizes.sigmoids,
            "EPS": sizes.eps,
            "HEADER_WORDS": sizes.header_words,
            "COUNT_WORD": sizes.count_word,
            "TILE": sizes.tile,
            "STEP": sizes.step,
            "CHUNK": sizes.chunk,
        },
        warps=4,
        stages=1 if sizes.narrow else 3,
        multiples_of_16=frozenset(("user_stride", "row_stride")) if sizes.dim % 16 == 0 else frozenset(),
    )
