"""A model as a folder: `model.toml`, `weights.safetensors` and, for an architecture of one's own, a Python file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import safetensors.torch
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from flame.engine.folder import replaced_folder
from flame.engine.models import ITEM_TABLE, RankModel, create, expected_tensors
from flame.engine.presets import preset, random_weights
from flame.engine.spec import ModelSpec
from flame.engine.spec_check import parse_spec, suggestion
from flame.engine.toml_text import to_toml
from flame.errors import PackageError

SPEC_FILE = "model.toml"
WEIGHTS_FILE = "weights.safetensors"
PRESET = "preset:"


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A model that can run: complete and checked.

    `weights` are float32 tensors on the CPU by name, not to be written. `path` is the folder, None for a preset.
    `fingerprint` is 32 hexadecimal digits over the spec, every weight and the Python file.
    """

    spec: ModelSpec
    weights: Mapping[str, Tensor]
    path: Path | None
    fingerprint: str

    @property
    def module_source(self) -> Path | None:
        """The Python file of an architecture of one's own."""
        return _module_source(self.spec, self.path)

    def model(self, device: str | torch.device = "cpu") -> RankModel:
        """A model with these weights, for inference; on the CPU it shares their memory.

        With the look-up on the host the item table stays out of it.
        """
        own = self.spec.module is not None
        with torch.device("cpu" if own else "meta"):
            model = create(self.spec, module_source=self.module_source)
        names = model.state_dict().keys()
        model.load_state_dict({name: self.weights[name] for name in names}, assign=True)
        return model.eval().requires_grad_(False).to(device)

    def item_embeddings(self) -> NDArray[np.float32]:
        """The item table `[vocabulary, item dim]`, sharing memory with `weights`; for look-ups on the host."""
        table: NDArray[np.float32] = self.weights[ITEM_TABLE].numpy()
        return table


def load(source: str | Path, *, allow_code: bool = False) -> ModelPackage:
    """The package in a folder, or `preset:NAME`: that preset with random weights, to try and to measure.

    Raises `PackageError` that names everything that is wrong, missing or superfluous. A package with a Python file
    is refused unless `allow_code`; its code runs in this process.
    """
    if str(source).startswith(PRESET):
        spec = preset(str(source).removeprefix(PRESET))
        weights = random_weights(spec, seed=0)
        return ModelPackage(spec, weights, None, _fingerprint(spec, weights, None))
    path = Path(source)
    if not path.is_dir():
        raise PackageError(f"{str(source)!r} is neither a model folder nor preset:NAME")
    spec = _read_spec(path)
    if spec.module and not allow_code:
        raise PackageError(
            f"model {spec.name!r} brings Python code ({spec.module.file}), which runs with the rights of the server; "
            "to trust it, set engine.allow_code to true"
        )
    weights = _read_weights(path)
    module_source = _module_source(spec, path)
    _refuse(
        f"{path.name}/{WEIGHTS_FILE}", _weight_problems(expected_tensors(spec, module_source=module_source), weights)
    )
    return ModelPackage(spec, weights, path, _fingerprint(spec, weights, module_source))


def save(folder: Path, spec: ModelSpec, weights: Mapping[str, Tensor], *, module_source: Path | None = None) -> None:
    """Writes a package, whole or not at all; a package that was there is replaced, other files of the folder stay.

    Raises `PackageError` as `load` would for what is about to be written.
    """
    text = to_toml(msgspec.to_builtins(spec))
    _refuse(f"spec of {spec.name!r}", parse_spec(text.encode())[1])
    _check_module_name(spec)
    problems = _weight_problems(expected_tensors(spec, module_source=module_source), weights)
    _refuse(f"weights of {spec.name!r}", problems)
    with replaced_folder(folder) as new:
        (new / SPEC_FILE).write_text(text, encoding="utf-8")
        safetensors.torch.save_file(_apart(weights), new / WEIGHTS_FILE, metadata={"format": "pt"})
        if spec.module and module_source:
            (new / spec.module.file).write_bytes(module_source.read_bytes())


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the file format takes them: on the CPU, and copied where they share memory, as tied weights do."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        own = tensor.detach().cpu().contiguous()
        apart[name] = own.clone() if own.untyped_storage().data_ptr() in seen else own
        seen.add(own.untyped_storage().data_ptr())
    return apart


def _read_spec(path: Path) -> ModelSpec:
    absent = [name for name in (SPEC_FILE, WEIGHTS_FILE) if not (path / name).is_file()]
    _refuse(f"model folder {path.name!r}", [f"there is no file {name!r}" for name in absent])
    spec, problems = parse_spec((path / SPEC_FILE).read_bytes())
    _refuse(f"model folder {path.name!r}", problems)
    assert spec is not None
    _check_module_name(spec)
    return spec


def _check_module_name(spec: ModelSpec) -> None:
    if spec.module and Path(spec.module.file).name != spec.module.file:
        raise PackageError(f"module.file {spec.module.file!r} must be the plain name of a file in the model folder")


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = safetensors.torch.load_file(path / WEIGHTS_FILE)
    except SafetensorError as error:
        raise PackageError(f"{path.name}/{WEIGHTS_FILE} is not a safetensors file: {error}") from error
    return weights


def _module_source(spec: ModelSpec, path: Path | None) -> Path | None:
    return path / spec.module.file if spec.module and path else None


def _weight_problems(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Everything wrong with `weights`, measured by what the model has."""
    missing = [name for name in expected if name not in weights]
    found = [f"missing tensor {name!r} {tuple(expected[name].shape)}" for name in missing]
    for name, tensor in weights.items():
        if name not in expected:
            found.append(f"unknown tensor {name!r}{suggestion(name, missing)}")
        else:
            found += _tensor_problems(name, expected[name], tensor)
    return found


def _tensor_problems(name: str, expected: Tensor, tensor: Tensor) -> list[str]:
    if tensor.dtype != expected.dtype:
        return [f"tensor {name!r} is {_plain(tensor.dtype)}, the model needs {_plain(expected.dtype)}"]
    if tensor.shape != expected.shape:
        return [f"tensor {name!r} has shape {tuple(tensor.shape)}, the model needs {tuple(expected.shape)}"]
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    return [f"tensor {name!r} holds {bad} values that are not finite"] if bad else []


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refuse(what: str, problems: list[str]) -> None:
    """Raises one error that lists all problems, if there are any."""
    if len(problems) == 1:
        raise PackageError(f"{what}: {problems[0]}")
    if problems:
        raise PackageError("\n  - ".join([f"{what} has {len(problems)} problems:", *problems]))


def _fingerprint(spec: ModelSpec, weights: Mapping[str, Tensor], module_source: Path | None) -> str:
    as_read = msgspec.convert(msgspec.to_builtins(spec), ModelSpec)
    digest = xxhash.xxh3_128(msgspec.json.encode(as_read, order="sorted"))
    if module_source:
        digest.update(module_source.read_bytes())
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
