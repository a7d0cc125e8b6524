"""Rankers in plain PyTorch: Climber, HSTU, and the contract a model of one's own follows."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from pathlib import Path

import torch

from flame.engine.models.base import ModelState, RankModel
from flame.engine.models.climber import Climber
from flame.engine.models.hstu import Hstu
from flame.engine.spec import ModelSpec, ModuleConfig
from flame.errors import PackageError

__all__ = ["ITEM_TABLE", "Climber", "Hstu", "ModelState", "RankModel", "create", "expected_tensors"]

ITEM_TABLE = "input.items.weight"
"""The item embedding table among the weights of every model, also where the host does the look-up."""


def create(spec: ModelSpec, *, module_source: Path | None = None) -> RankModel:
    """A model of this spec with fresh, trainable weights.

    `module_source` is the Python file of a spec with `[module]`; it is run. Raises `PackageError` when the file or
    its class is not what the spec says.
    """
    if spec.climber:
        return Climber(spec)
    if spec.hstu:
        return Hstu(spec)
    assert spec.module is not None
    if module_source is None:
        raise PackageError(f"model {spec.name!r} is a module of its own: its source {spec.module.file!r} is needed")
    return _own(spec, spec.module, module_source)


def expected_tensors(spec: ModelSpec, *, module_source: Path | None = None) -> dict[str, torch.Tensor]:
    """The tensors that the weights of this model consist of: names, shapes and dtypes, on the meta device.

    A module of one's own is made on the CPU for it, as its code may read the numbers it makes. With the
    look-up on the host the item table is one of them, though the model itself has no such parameter.
    Raises as `create` does.
    """
    with torch.device("cpu" if spec.module else "meta"):
        made = create(spec, module_source=module_source).state_dict()
    with torch.device("meta"):
        tensors = {name: tensor.to("meta") for name, tensor in made.items()}
        if spec.input.item_id.lookup == "host":
            tensors[ITEM_TABLE] = torch.empty(spec.input.item_id.vocabulary, spec.input.item_id.dim)
    return tensors


def _own(spec: ModelSpec, module: ModuleConfig, source: Path) -> RankModel:
    """An instance of the user's class, made as `class_name(spec, **options)`."""
    kind = getattr(_run(source), module.class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, RankModel)):
        raise PackageError(
            f"{source.name} has no class {module.class_name!r} derived from flame.engine.models.RankModel"
        )
    try:
        return kind(spec, **module.options)
    except Exception as error:
        raise PackageError(f"{module.class_name}(spec, **{module.options}) failed: {error}") from error


def _run(source: Path) -> object:
    """The module object of a Python file, in `sys.modules` under a name of its own: dataclasses look it up there."""
    name = f"flame_model_{source.stem}_{zlib.crc32(bytes(source.absolute())):08x}"
    found = importlib.util.spec_from_file_location(name, source)
    if found is None or found.loader is None or not source.is_file():
        raise PackageError(f"module.file: there is no Python file {source.name!r} in the package")
    code = importlib.util.module_from_spec(found)
    sys.modules[name] = code
    try:
        found.loader.exec_module(code)
    except Exception as error:
        del sys.modules[name]
        raise PackageError(f"{source.name} cannot be imported: {type(error).__name__}: {error}") from error
    return code
