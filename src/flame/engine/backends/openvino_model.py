"""The steps of a model with tensors for arguments, as a tracer wants them, and the tensors of a launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from torch import Tensor, nn

from flame.engine.inputs import ModelInputs
from flame.engine.models import RankModel
from flame.engine.models.head import activate
from flame.engine.spec import Task

_HEADER = {"scenario", "candidate_count", "lengths"}
_REQUEST = {"user_integers", "user_floats", "context_integers", "context_floats"}


def input_names(kind: str, inputs: ModelInputs) -> list[str]:
    """The fields of `inputs` that a launch of `kind` reads and that hold anything, in declared order."""
    unread = {"rank": (), "encode": ("candidate_",), "score": ("event_",)}[kind]
    names = [field.name for field in fields(inputs) if field.name in _HEADER or not field.name.startswith(unread)]
    if kind == "encode":
        names = [name for name in names if name not in _REQUEST]
    given = {name: getattr(inputs, name) for name in names}
    return [name for name, part in given.items() if part is not None and part.numel()]


class RankStep(nn.Module):
    """Inputs by name -> scores."""

    def __init__(self, model: RankModel, names: Sequence[str], tasks: Sequence[Task]) -> None:
        super().__init__()
        self.model, self.names, self.tasks = model, names, tasks

    def forward(self, *parts: Tensor) -> Tensor:
        return activate(self.model.rank(_inputs(self.names, parts)), self.tasks)


class EncodeStep(nn.Module):
    """Inputs by name -> the tensors of the state."""

    def __init__(self, model: RankModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        # A tensor that goes through untouched would tie an output to the memory of an input.
        return tuple(part.clone() for part in self.model.encode(_inputs(self.names, parts)))


class ScoreStep(nn.Module):
    """Inputs by name, then the tensors of the state -> scores."""

    def __init__(self, model: RankModel, names: Sequence[str], tasks: Sequence[Task]) -> None:
        super().__init__()
        self.model, self.names, self.tasks = model, names, tasks

    def forward(self, *parts: Tensor) -> Tensor:
        own = len(self.names)
        return activate(self.model.score(parts[own:], _inputs(self.names, parts[:own])), self.tasks)


def _inputs(names: Sequence[str], parts: Sequence[Tensor]) -> ModelInputs:
    given: dict[str, Tensor | None] = {field.name: None for field in fields(ModelInputs)}
    return ModelInputs(**(given | dict(zip(names, parts, strict=True))))  # type: ignore[arg-type]
