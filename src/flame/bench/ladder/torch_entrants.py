"""The PyTorch rows of the ladder, whole model and layers alone, in bf16."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flame.bench.baselines import attention
from flame.bench.baselines.attention import Pointwise, Shape, Softmax
from flame.bench.baselines.climber import PlainClimber
from flame.bench.baselines.climber_ends import ClimberEnds
from flame.bench.baselines.compiling import Compile, as_it_is, compiled
from flame.bench.baselines.hstu import PlainHstu
from flame.bench.ladder.cases import Case
from flame.bench.ladder.entrant import Entrant, Refused

NAMES = ("eager-dense", "sdpa", "compile-graph", "flex-graph", "flex-graph-together")

_STAND_IN = "FlexAttention has no SiLU attention, so it runs a softmax in its place"


class _Way(NamedTuple):
    """How a variant attends, what is done to its parts, and whether it is captured."""

    attention: str
    compile_part: Compile
    graph: bool
    together: bool = False


_WAYS = {
    "eager-dense": _Way("dense", as_it_is, graph=False),
    "sdpa": _Way("sdpa", as_it_is, graph=False),
    "compile-graph": _Way("sdpa", compiled, graph=True),
    "flex-graph": _Way("flex", compiled, graph=True),
    "flex-graph-together": _Way("flex", compiled, graph=True, together=True),
}


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class TorchEntrants:
    """The rows of one case. Variants that are compiled share what stands before and behind their layers."""

    def __init__(self, case: Case, precision: str) -> None:
        self._case, self._precision = case, precision
        self._ends: dict[Compile, ClimberEnds] = {}
        torch.compiler.reset()

    def of(self, variant: str) -> Iterator[Entrant]:
        """The rows of one variant, whose layers come first.

        Raises `Refused` for a model that it is not made for or that would not fit.
        """
        case, way = self._case, _WAYS[variant]
        start = time.perf_counter()
        plain = self._plain(way)
        tokens: Any = plain.tokens(case.inputs)
        stack = _Kept(lambda: plain.stack(tokens, case.profile.candidates))
        yield self._entrant(variant, "stack", stack, start)
        yield self._entrant(variant, "model", _Kept(lambda: plain.scores(case.inputs)), start)

    def _plain(self, way: _Way) -> PlainClimber | PlainHstu:
        case, dtype = self._case, PRECISIONS[self._precision]
        if case.spec.hstu:
            return _hstu(case, way, dtype)
        plain = _climber(case, way, dtype, self._ends.get(way.compile_part))
        self._ends[way.compile_part] = plain.ends
        return plain

    def _entrant(self, variant: str, part: str, launch: _Kept, start: float) -> Entrant:
        case, way = self._case, _WAYS[variant]
        launch.run()
        taken = time.perf_counter() - start
        if case.spec.hstu and way.attention == "flex":
            return Entrant(variant, launch.run, way.graph, taken, part, precision=self._precision, note=_STAND_IN)
        asked = case.asked if part == "model" else case.asked_rows
        return Entrant(
            variant, launch.run, way.graph, taken, part, precision=self._precision, found=lambda: asked(launch.kept())
        )


def true_rows(case: Case, *, temperatures: bool) -> Tensor:
    """What the layers alone give in fp32, `[pairs, blocks * dim]`, with the temperatures of a Climber or without.

    The rows of PyTorch leave them out, as the marks were set without.
    """
    way = _Way("silu" if case.spec.hstu else "sdpa", as_it_is, graph=False)
    plain = _hstu(case, way, torch.float32) if case.spec.hstu else _climber(case, way, torch.float32)
    tokens: Any = plain.tokens(case.inputs)
    candidates = case.profile.candidates
    if isinstance(plain, PlainHstu):
        return case.asked_rows(plain.stack(tokens, candidates))
    return case.asked_rows(plain.stack(tokens, candidates, plain.sharpness(case.inputs) if temperatures else None))


class _Kept:
    """A launch that keeps what it gave: memory of its graph once it is captured."""

    def __init__(self, launch: Callable[[], Tensor]) -> None:
        self._launch = launch
        self._found: Tensor | None = None

    def run(self) -> None:
        self._found = self._launch()

    def kept(self) -> Tensor:
        assert self._found is not None
        return self._found


def _climber(case: Case, way: _Way, dtype: torch.dtype, ends: ClimberEnds | None = None) -> PlainClimber:
    attend = _softmax(case, way, dtype)
    return PlainClimber(case.package, attend, way.compile_part, dtype, case.device, together=way.together, ends=ends)


def _hstu(case: Case, way: _Way, dtype: torch.dtype) -> PlainHstu:
    return PlainHstu(case.package, _pointwise(case, way, dtype), way.compile_part, dtype, case.device)


def _pointwise(case: Case, way: _Way, dtype: torch.dtype) -> Pointwise:
    if way.together or (way.attention == "sdpa" and not way.graph):
        raise Refused("an HSTU has one block and no softmax")
    shape, schema = _shape(case), case.spec.input
    scale = 1 / (schema.sequence_capacity(schema.max_history) + 1)
    if way.attention == "dense":
        _require_room(case, dtype)
        return attention.silu_dense(shape, case.device, scale)
    if way.attention == "flex":
        stand_in = attention.flex(shape, case.device)
        return lambda queries, keys, values: stand_in(queries, keys, values, None)
    return attention.silu(shape, case.device, scale)


def _softmax(case: Case, way: _Way, dtype: torch.dtype) -> Softmax:
    if way.attention == "dense":
        _require_room(case, dtype)
        return attention.dense(_shape(case), case.device, dtype)
    return (attention.flex if way.attention == "flex" else attention.sdpa)(_shape(case), case.device)


def _shape(case: Case) -> Shape:
    sizes = case.spec.climber or case.spec.hstu
    assert sizes is not None
    return Shape(case.events, case.profile.candidates, sizes.causal)


def _require_room(case: Case, dtype: torch.dtype) -> None:
    """Raises `Refused` where attention matrices would take more than half of the device's free memory."""
    if case.device.type != "cuda":
        return
    needed = case.profile.users * case.dense_bytes(dtype.itemsize)
    free = torch.cuda.mem_get_info(case.device)[0]
    if needed > free / 2:
        raise Refused(f"dense attention would take {needed / 2**30:.0f} GiB of {free / 2**30:.0f} GiB that are free")
