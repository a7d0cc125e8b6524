"""Climber's fusion and heads in the fused backend: kernels, or PyTorch's operations in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flame.engine.backends.fused.climber_input import part
from flame.engine.backends.fused.precision import Precision
from flame.engine.backends.fused.program import LaunchMemory
from flame.engine.backends.fused.rows import Rows
from flame.engine.inputs import unpack
from flame.engine.kernels.climber_head import CAPABILITY, ClimberExperts, ClimberFusion, experts_fit, fusion_fits
from flame.engine.kernels.experts import ExpertHead, ExpertSizes, ExpertWork
from flame.engine.kernels.fusion import FusionSizes, FusionWork
from flame.engine.kernels.kernel import Kernel, Runtime
from flame.engine.kernels.processors import processors_of
from flame.engine.kernels.wide_fusion import AnyFusion, WideWork, fusion_of
from flame.engine.models import head as models
from flame.engine.models.gating import GatedFusion
from flame.engine.spec import ModelSpec


class HeadWork(NamedTuple):
    """What a launch keeps between its kernels."""

    fusion: FusionWork | WideWork
    experts: ExpertWork | Tensor


class _Weights(NamedTuple):
    """As the kernels have packed them."""

    fusion: Any
    experts: Any


class FusedHead:
    """Gated fusion, experts, gates, towers and activations as kernels."""

    def __init__(
        self,
        spec: ModelSpec,
        precision: Precision,
        runtime: Runtime,
        weights: Mapping[str, Tensor] | None,
        capability: int,
    ) -> None:
        self._precision = precision
        self._runtime = runtime
        self._fusion, self._experts = _kernels(
            fusion_sizes(spec), expert_sizes(spec), precision, capability, processors_of(runtime.device)
        )
        self._weights = self._packed(weights) if weights else None

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return (*self._fusion.kernels, *self._experts.kernels)

    def work(self, rows: Rows) -> HeadWork:
        """Memory for launches with these rows."""
        device = self._runtime.device
        return HeadWork(
            self._fusion.work(rows.users, rows.candidates, self._precision.dtype, device),
            self._experts.work(rows.users, rows.candidates, device),
        )

    def launch(self, memory: LaunchMemory, work: HeadWork) -> None:
        """Scores of all live candidates from their rows of `memory.x`."""
        assert self._weights is not None
        packed, own, rows = self._weights.fusion, work.fusion, memory.rows
        wide = self._fusion.launch(self._runtime, packed, own, memory.words, memory.x, rows.events)  # type: ignore[arg-type]
        experts = self._weights.experts
        self._experts.launch(self._runtime, experts, work.experts, memory.words, wide, memory.scores)  # type: ignore[arg-type]

    def _packed(self, weights: Mapping[str, Tensor]) -> _Weights:
        dtype, device = self._precision.dtype, self._runtime.device
        fusion = self._fusion.pack(part(weights, "fusion."), dtype, device)
        return _Weights(fusion, self._experts.pack(part(weights, "head."), dtype, device))


class PlainHead:
    """The model's own modules in the program's precision."""

    def __init__(
        self,
        spec: ModelSpec,
        precision: Precision,
        runtime: Runtime,
        weights: Mapping[str, Tensor] | None,
        capability: int,
    ) -> None:
        self._spec = spec
        self._fusion: GatedFusion | None = None
        self._head: models.ExpertHead | None = None
        if weights:
            with torch.device("meta"):
                self._fusion, self._head = _modules(spec)
            _load(self._fusion, part(weights, "fusion."), precision, runtime.device)
            _load(self._head, part(weights, "head."), precision, runtime.device)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return ()

    def work(self, rows: Rows) -> None:
        """PyTorch allocates what it needs; in a captured graph from the graph's pool."""

    def launch(self, memory: LaunchMemory, work: None) -> None:
        """Scores of all candidate slots; those beyond a count get garbage."""
        assert self._fusion is not None
        assert self._head is not None
        layout = self._spec.layout(memory.profile)
        inputs = unpack(memory.words, layout)
        rows = memory.x[:, :, memory.rows.events : memory.rows.events + layout.candidates]
        with torch.inference_mode():
            logits = self._head(self._fusion(rows, inputs.scenario))
            memory.scores.copy_(models.activate(logits.float(), self._spec.tasks))


def _kernels(
    fusion: FusionSizes, experts: ExpertSizes, precision: Precision, capability: int, processors: int
) -> tuple[ClimberFusion | AnyFusion, ClimberExperts | ExpertHead]:
    """Both of one kind: they agree on the order of columns between them."""
    if precision.name == "bf16" and capability == CAPABILITY and fusion_fits(fusion) and experts_fit(experts):
        return ClimberFusion(fusion, processors), ClimberExperts(experts, processors)
    pointer = precision.pointer
    return fusion_of(fusion, pointer), ExpertHead(experts, pointer, capability)


def fusion_sizes(spec: ModelSpec) -> FusionSizes:
    """The sizes of a Climber's gated fusion."""
    assert spec.climber is not None
    sizes, blocks = spec.climber, len(spec.input.sequences)
    return FusionSizes(
        blocks=blocks,
        dim=sizes.dim,
        heads=sizes.heads,
        ffn=sizes.ffn,
        scenarios=spec.input.scenarios,
        squeezed=max(1, blocks * sizes.dim // sizes.gate_reduction),
        residual_first=sizes.wiring == "flame",
        header_words=spec.record.header_words,
    )


def expert_sizes(spec: ModelSpec) -> ExpertSizes:
    """The sizes of a Climber's experts and towers."""
    assert spec.climber is not None
    sizes = spec.climber
    return ExpertSizes(
        inputs=len(spec.input.sequences) * sizes.dim,
        experts=sizes.experts,
        hidden=sizes.expert_hidden,
        dim=sizes.expert_dim,
        tower_hidden=sizes.tower_hidden,
        sigmoids=tuple(task.activation == "sigmoid" for task in spec.tasks),
        header_words=spec.record.header_words,
    )


def _modules(spec: ModelSpec) -> tuple[GatedFusion, models.ExpertHead]:
    assert spec.climber is not None
    sizes, blocks = spec.climber, len(spec.input.sequences)
    fusion = GatedFusion(
        blocks,
        sizes.dim,
        sizes.heads,
        sizes.ffn,
        spec.input.scenarios,
        sizes.wiring,
        reduction=sizes.gate_reduction,
    )
    head = models.ExpertHead(
        blocks * sizes.dim,
        len(spec.tasks),
        sizes.experts,
        sizes.expert_hidden,
        sizes.expert_dim,
        sizes.tower_hidden,
    )
    return fusion, head


def _load(module: nn.Module, weights: dict[str, Tensor], precision: Precision, device: torch.device) -> None:
    given = {name: tensor.to(device, precision.dtype) for name, tensor in weights.items()}
    module.load_state_dict(given, assign=True)
