"""The contract of a model: two steps with equal results to one."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from flame.engine.inputs import ModelInputs

ModelState = tuple[Tensor, ...]
"""What candidates need of the histories: any number of tensors, each with the users as its first dimension."""


class RankModel(nn.Module, abc.ABC):
    """A ranker in plain PyTorch: the truth that every engine is compared with, and what training runs.

    All methods work on whole launches (`users` first), are differentiable, and obey candidate isolation: the logits
    of a candidate depend on its own features and on its user's header and events, never on other candidates, other
    users, the sizes of the launch, or the garbage in unused slots. Logits of unused slots may be anything finite.
    """

    @abc.abstractmethod
    def encode(self, inputs: ModelInputs) -> ModelState:
        """The histories as a state; reads the header's scenario and lengths and the events, no candidates."""

    def append(self, state: ModelState, inputs: ModelInputs, prefix: int) -> ModelState:
        """As `encode`, of one user whose first `prefix` events `state` holds: only the events behind them are encoded.

        Asked of models alone whose spec is `appendable`.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot append to an encoded history")

    @abc.abstractmethod
    def score(self, state: ModelState, inputs: ModelInputs) -> Tensor:
        """Logits `[users, candidates, tasks]` from encoded histories; reads the header and the candidates."""

    def rank(self, inputs: ModelInputs) -> Tensor:
        """Logits `[users, candidates, tasks]`, equal to `score(encode(inputs), inputs)` up to rounding."""
        return self.score(self.encode(inputs), inputs)

    def forward(self, inputs: ModelInputs) -> Tensor:
        """`rank`: what training differentiates."""
        return self.rank(inputs)
