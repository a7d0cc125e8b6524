"""How `openvino` is built: the eager model is traced and converted, one graph per profile and kind of launch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openvino
import torch
from torch import nn

from flame.engine.backends.base import Engine
from flame.engine.backends.openvino import KINDS, OpenVinoEngine, graph_file
from flame.engine.backends.openvino_model import EncodeStep, RankStep, ScoreStep, input_names
from flame.engine.backends.registry import BuildTarget
from flame.engine.inputs import ModelInputs, unpack
from flame.engine.models import RankModel
from flame.engine.package import ModelPackage
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile
from flame.errors import BackendUnavailable


class OpenVinoBackend:
    """Needs the package `openvino`, a Climber or an HSTU, and fp32 on a CPU."""

    per_profile = True

    def resolve(self, target: BuildTarget) -> BuildTarget:
        return target.on("cpu", "fp32")

    def require(self, spec: ModelSpec, target: BuildTarget) -> None:
        """Raises `BackendUnavailable` with what is in the way."""
        if spec.module:
            raise BackendUnavailable(
                f"openvino converts Climber and HSTU, and model {spec.name!r} is a module of its own: use eager"
            )
        if not spec.input.max_history:
            raise BackendUnavailable(f"openvino has no empty tensors, and model {spec.name!r} takes no history")
        target.require_cpu_fp32("openvino")

    def versions(self) -> Mapping[str, str]:
        return {"openvino": openvino.__version__}

    def prepare(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> None:
        """Writes a graph with its weights for every profile and kind; each takes some seconds."""
        model = package.model()
        for profile in profiles:
            inputs = _example(package.spec, profile)
            for kind in KINDS:
                step, parts = _step(model, package.spec, kind, inputs)
                openvino.save_model(_convert(step, parts), folder / graph_file(profile, kind), compress_to_fp16=False)

    def open(self, package: ModelPackage, profiles: Sequence[Profile], folder: Path, target: BuildTarget) -> Engine:
        return OpenVinoEngine(package.spec, profiles, folder, target.threads)


def _example(spec: ModelSpec, profile: Profile) -> ModelInputs:
    """A full launch to trace with."""
    lengths = [[sequence.capacity(profile.history) for sequence in spec.input.sequences]] * profile.users
    layout = spec.layout(profile)
    words = random_words(spec, layout, lengths, [profile.candidates] * profile.users, np.random.default_rng(0))
    return unpack(torch.from_numpy(words), layout)


def _step(
    model: RankModel, spec: ModelSpec, kind: str, inputs: ModelInputs
) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The module to trace and its example arguments."""
    names = input_names(kind, inputs)
    parts = tuple(getattr(inputs, name).contiguous() for name in names)
    if kind == "rank":
        return RankStep(model, names, spec.tasks), parts
    if kind == "encode":
        return EncodeStep(model, names), parts
    with torch.inference_mode():
        state = tuple(part.clone() for part in model.encode(inputs))
    return ScoreStep(model, names, spec.tasks), (*parts, *state)


def _convert(step: nn.Module, parts: tuple[torch.Tensor, ...]) -> openvino.Model:
    """The graph with static shapes."""
    shapes = [list(part.shape) for part in parts]
    try:
        # Tracing warns of every constant it keeps, and these are constants of the model.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return openvino.convert_model(step, example_input=parts, input=shapes)
    except Exception as error:
        raise BackendUnavailable(f"openvino cannot convert this model: {error}") from error
