"""The row of ONNX Runtime: the model with a dense mask, exported in fp16, on its CUDA provider."""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flame.bench.baselines import attention
from flame.bench.baselines.climber import PlainClimber
from flame.bench.baselines.compiling import as_it_is
from flame.bench.ladder.cases import Case
from flame.bench.ladder.entrant import Entrant, Refused
from flame.engine.inputs import ModelInputs

NAMES = ("onnxruntime",)

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


def entrants(case: Case, variant: str) -> Iterator[Entrant]:
    """One row. Raises `Refused` where the packages or the provider of this device are missing."""
    if case.spec.climber is None:
        raise Refused("only a Climber is exported to ONNX")
    runtime, provider = _provider(case.device)
    start = time.perf_counter()
    dtype, precision = (torch.float16, "fp16") if case.device.type == "cuda" else (torch.float32, "fp32")
    with tempfile.TemporaryDirectory(prefix="flame-bench-") as folder:
        file = Path(folder) / "model.onnx"
        try:
            _export(case, dtype, file)
            session = _session(runtime, provider, file)
        except Exception as error:
            raise Refused(f"the model cannot be exported or loaded: {type(error).__name__}: {error}") from error
    scores = torch.empty(*case.inputs.candidate_item.shape, len(case.spec.tasks), device=case.device)
    binding = _bound(session, case, scores)
    session.run_with_iobinding(binding)
    yield Entrant(
        variant,
        lambda: session.run_with_iobinding(binding),
        graph=False,
        build_s=time.perf_counter() - start,
        precision=precision,
        found=lambda: case.asked(scores),
        note=f"{precision}, as exported; its own stream is waited for",
    )


def _provider(device: torch.device) -> tuple[Any, str]:
    """The module and the provider that fits the device."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
        importlib.import_module("onnxscript")
    except ImportError as error:
        raise Refused(f"ONNX Runtime is not here: {error}") from error
    provider = _PROVIDERS[device.type]
    if provider not in onnxruntime.get_available_providers():
        raise Refused(
            f"ONNX Runtime {onnxruntime.__version__} is here without its {provider}; "
            f"it has {', '.join(onnxruntime.get_available_providers())}"
        )
    return onnxruntime, provider


class _Exported(nn.Module):
    """The model as a function of its input tensors, in the order of `ModelInputs`."""

    def __init__(self, plain: PlainClimber, names: list[str]) -> None:
        super().__init__()
        self._plain, self._names = plain, names

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self._names, tensors, strict=True))
        absent = dict.fromkeys({field.name for field in fields(ModelInputs)} - given.keys())
        return self._plain.scores(ModelInputs(**given, **absent))  # type: ignore[arg-type]


def _export(case: Case, dtype: torch.dtype, file: Path) -> None:
    assert case.spec.climber is not None
    shape = attention.Shape(case.events, case.profile.candidates, case.spec.climber.causal)
    attend = attention.dense(shape, case.device, dtype)
    plain = PlainClimber(case.package, attend, as_it_is, dtype, case.device, together=True)
    tensors = _tensors(case)
    torch.onnx.export(
        _Exported(plain, list(tensors)).eval(),
        tuple(tensors.values()),
        file,
        input_names=list(tensors),
        output_names=["scores"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _tensors(case: Case) -> dict[str, Tensor]:
    """Inputs by name, contiguous, without those that this model has not; ONNX indexes with int64 only."""
    found = {field.name: getattr(case.inputs, field.name) for field in fields(ModelInputs)}
    found["scenario"] = case.inputs.scenario.long()
    return {name: one.contiguous() for name, one in found.items() if one is not None}


def _session(runtime: Any, provider: str, file: Path) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(file), options, providers=[provider])


def _bound(session: Any, case: Case, scores: Tensor) -> Any:
    """Inputs and outputs where they lie, so that nothing is copied."""
    binding = session.io_binding()
    tensors = _tensors(case)
    for one in session.get_inputs():
        tensor = tensors[one.name]
        kind = str(tensor.dtype).removeprefix("torch.")
        binding.bind_input(one.name, tensor.device.type, 0, kind, tuple(tensor.shape), tensor.data_ptr())
    binding.bind_output("scores", scores.device.type, 0, "float32", tuple(scores.shape), scores.data_ptr())
    binding._flame_inputs = tensors
    return binding
