"""The rows of the fused engine: all parts fused, without one part after the other, and in other precisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from msgspec.structs import replace
from torch import Tensor

from flame.bench.ladder.cases import Case
from flame.bench.ladder.entrant import Entrant, Refused
from flame.config import EngineConfig
from flame.engine.backends.base import Engine
from flame.engine.backends.fused.engine import FusedEngine
from flame.engine.backends.fused.parts import PARTS
from flame.engine.backends.fused.program import LaunchMemory, Program
from flame.engine.build import build
from flame.engine.measuring import fastest_ways
from flame.engine.package import ModelPackage
from flame.engine.spec import Profile
from flame.engine.validate import validate
from flame.errors import EngineError

_WITHOUT = {f"flame-no-{part}": (part,) for part in PARTS} | {"flame-no-feed-forward": ("stack", "feed-forward")}
"""The layers as one launch hold the feed-forward half, so it is left out together with them."""

_PRECISION = {"flame-fp16": "fp16", "flame-fp32": "fp32"}

_VALIDATED_USERS = 8
"""Launches of more users are compared with the oracle as cases; all of `flame validate` would take minutes."""

NAMES = ("flame", *_WITHOUT, *_PRECISION)


class Engines:
    """The engines of one package, each built and validated when it is first asked for, and good for all `profiles`.

    Only the first of these is known to the build, which measures the cost of each that is: kernels do not depend on it.
    """

    def __init__(
        self, package: ModelPackage, settings: EngineConfig, profiles: Sequence[Profile], oracle: Engine, folder: Path
    ) -> None:
        self._package, self._settings, self._profiles = package, settings, profiles
        self._oracle, self._folder = oracle, folder
        self._built: dict[str, tuple[FusedEngine, float]] = {}
        self._refused: dict[str, str] = {}

    def engine(self, variant: str, requests: int, seed: int) -> tuple[FusedEngine, float]:
        """An engine that gives the oracle's scores, and the seconds of its build. Raises `Refused`."""
        if variant in self._refused:
            raise Refused(self._refused[variant])
        if variant not in self._built:
            try:
                self._built[variant] = self._validated(variant, requests, seed)
            except EngineError as error:
                self._refused[variant] = str(error)
                raise Refused(str(error)) from error
        return self._built[variant]

    def close(self) -> None:
        """Frees all engines."""
        for engine, _ in self._built.values():
            engine.close()
        self._built.clear()

    def _validated(self, variant: str, requests: int, seed: int) -> tuple[FusedEngine, float]:
        start = time.perf_counter()
        engine = build(self._package, self._of(variant), self._profiles[:1])
        taken = time.perf_counter() - start
        assert isinstance(engine, FusedEngine)
        engine.profiles = tuple(profile for profile in self._profiles if profile.users <= _VALIDATED_USERS)
        report = validate(engine, self._oracle, requests=requests, seed=seed)
        engine.profiles = tuple(self._profiles)
        if not report.passed:
            engine.close()
            raise EngineError(f"validation failed: {'; '.join(report.failures)}")
        return engine, taken

    def _of(self, variant: str) -> EngineConfig:
        """Settings of a variant, with a folder of its own, so that its build starts from nothing."""
        return replace(
            self._settings,
            backend="fused",
            precision=_PRECISION.get(variant, "bf16"),
            without=_WITHOUT.get(variant, ()),
            artifact=str(self._folder / variant),
            validate="off",
        )


def entrants(case: Case, variant: str, engine: FusedEngine, build_s: float) -> Iterator[Entrant]:
    """The rows of one variant; encode and score are measured where all parts are fused.

    Launches go the fastest of the engine's ways, as those of a server do, whose build measures every profile.
    """
    for kind, way in fastest_ways(engine, case.profile).items():
        engine.take(case.profile, kind, way)
    launches = Launches(case, engine)
    graph, precision = variant != "flame-no-graph", engine.precision
    for kind in ("rank", "encode", "score") if variant == "flame" else ("rank",):
        yield Entrant(
            variant,
            launches.on_device(kind),
            graph,
            build_s,
            kind=kind,
            precision=precision,
            found=None if kind == "encode" else launches.found,
            launch=launches.with_copies(kind),
        )
    yield Entrant(
        variant,
        launches.on_device("layers"),
        graph,
        build_s,
        "stack",
        precision=precision,
        found=launches.found_rows,
        before=launches.on_device("tokens"),
    )


class Launches:
    """One case in the memory of an engine: as its program runs it, and as a server does."""

    def __init__(self, case: Case, engine: FusedEngine) -> None:
        self._case, self._engine = case, engine
        self._program: Program = engine.program
        self._memory: LaunchMemory = self._program.memory(case.profile)
        self._memory.words.copy_(case.words)
        self._memory.states.copy_(self._memory.own_states)
        self._memory.scores.fill_(torch.nan)
        self._buffers = engine.buffers(case.profile)
        self._buffers.words[:] = case.words.cpu().numpy()
        self._states = [engine.state(case.profile.history) for _ in range(case.profile.users)]
        self._program.rank(self._memory)
        engine.encode(self._buffers, self._states)

    def on_device(self, kind: str) -> Callable[[], None]:
        """Kernels only, on the current stream."""
        launch: Callable[[LaunchMemory], None] = getattr(self._program, kind)
        return lambda: launch(self._memory)

    def with_copies(self, kind: str) -> Callable[[], None]:
        """A launch of the engine, from host memory to host memory."""
        users = self._case.profile.users
        return {
            "rank": lambda: self._engine.rank(self._buffers, users),
            "encode": lambda: self._engine.encode(self._buffers, self._states),
            "score": lambda: self._engine.score(self._buffers, self._states),
        }[kind]

    def found_rows(self) -> Tensor:
        """What the last launch of the layers alone left `[pairs, blocks * dim]`."""
        events, candidates = self._memory.rows.events, self._case.profile.candidates
        return self._case.asked_rows(self._memory.x[:, :, events : events + candidates])

    def found(self) -> Tensor:
        """Scores of the last launch on the device `[pairs, tasks]`."""
        return self._case.asked(self._memory.scores)
