"""The ladder from case to case: draws, builds, checks, measures."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from flame.bench.ladder import flame_entrants, onnx_entrants, torch_entrants
from flame.bench.ladder.cases import SCENARIOS, Case
from flame.bench.ladder.clock import Clock, clock_of
from flame.bench.ladder.entrant import Entrant, Refused
from flame.bench.ladder.flame_entrants import Engines
from flame.bench.ladder.measure import MATRIX_SIZE, Recorded, measured
from flame.bench.ladder.packages import package
from flame.bench.ladder.rows import Row, refused
from flame.bench.ladder.truth import Truths, distance
from flame.bench.progress import Show
from flame.config import EngineConfig
from flame.engine.backends.eager import EagerEngine
from flame.engine.spec import Profile
from flame.errors import BackendUnavailable, ConfigError

NEW_LINE = "\n"
NAMES = (*torch_entrants.NAMES, *onnx_entrants.NAMES, *flame_entrants.NAMES)


@dataclass(frozen=True, slots=True)
class Ladder:
    """What to measure; without `users` or `variants`, what each scenario names. `precision` is the PyTorch rows'."""

    scenarios: Sequence[str] = tuple(SCENARIOS)
    users: Sequence[int] = ()
    variants: Sequence[str] = ()
    rounds: int = 60
    validations: int = 4
    precision: str = "bf16"
    seed: int = 0


def run(
    ladder: Ladder,
    settings: EngineConfig,
    device: str,
    show: Show,
    keep: Callable[[Sequence[Row], Mapping[str, Any]], None] = lambda rows, facts: None,
) -> tuple[list[Row], dict[str, Any]]:
    """Rows and facts of the run. Raises `ConfigError` for an unknown name and what the oracle raises.

    `keep` is called with what there is after every case, so that a run that is cut off has not been for nothing.
    """
    _check("scenario", ladder.scenarios, tuple(SCENARIOS))
    _check("variant", ladder.variants, NAMES)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BackendUnavailable(f"engine.device is {device!r}, but PyTorch finds no CUDA device here")
    facts = {"rounds": ladder.rounds, "seed": ladder.seed, "matrix_size": MATRIX_SIZE, "precision": ladder.precision}
    facts |= {"device": _told(device)}
    rows: list[Row] = []
    for model in dict.fromkeys(SCENARIOS[name].model for name in ladder.scenarios):
        with tempfile.TemporaryDirectory(prefix="flame-bench-") as folder:
            for case_rows in _Model(ladder, model, settings, torch.device(device), Path(folder), show).cases():
                rows += case_rows
                keep(rows, facts)
    return rows, facts


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"there is no {what} {name!r} here; there are {', '.join(known)}")


def _told(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


class _Model:
    """All cases of the scenarios that share one model, so that its engines are built once."""

    def __init__(
        self,
        ladder: Ladder,
        model: tuple[str, int],
        settings: EngineConfig,
        device: torch.device,
        folder: Path,
        show: Show,
    ) -> None:
        self._ladder, self._device, self._show = ladder, device, show
        self._package = package(*model)
        self._scenarios = [name for name in ladder.scenarios if SCENARIOS[name].model == model]
        profiles = list(dict.fromkeys(profile for name in self._scenarios for profile in self._profiles(name)))
        self._oracle = EagerEngine(self._package, profiles, str(device))
        self._truth = self._package.model(device)
        on_device = replace(settings, device=str(device))
        self._engines = Engines(self._package, on_device, profiles, self._oracle, folder)
        self._clock: Clock = clock_of(device)

    def cases(self) -> Iterator[list[Row]]:
        """Rows of one case after the other."""
        for name in self._scenarios:
            for users in self._users(name):
                yield self._case(name, users)
        self._engines.close()
        self._oracle.close()

    def _users(self, scenario: str) -> Sequence[int]:
        return self._ladder.users or SCENARIOS[scenario].users

    def _profiles(self, scenario: str) -> list[Profile]:
        """Those of the cases, and one of a single user to validate with."""
        shape = SCENARIOS[scenario]
        return [Profile(users, shape.history, max(shape.candidates)) for users in (1, *self._users(scenario))]

    def _case(self, scenario: str, users: int) -> list[Row]:
        case = Case.draw(scenario, self._package, users, self._ladder.seed, self._device)
        wanted = self._ladder.variants or SCENARIOS[scenario].variants
        truths = Truths(case, self._truth)
        plain = torch_entrants.TorchEntrants(case, self._ladder.precision)
        rows: list[Row] = []
        taking: list[Recorded] = []
        for index, variant in enumerate(wanted):
            self._show(f"{scenario}, {users} users: building", index, len(wanted))
            try:
                taking += [self._checked(one, truths) for one in self._entrants(case, variant, plain)]
            except Refused as error:
                rows.append(refused(case, variant, str(error)))
            except Exception as error:  # whatever a compiler, a driver or an allocator says is this row's reason
                rows.append(refused(case, variant, f"{type(error).__name__}: {str(error).partition(NEW_LINE)[0]}"))
        self._show(f"{scenario}, {users} users: building", len(wanted), len(wanted))
        rows += measured(case, taking, self._clock, self._ladder.rounds, self._show)
        del taking
        _tidy(self._device)
        return rows

    def _entrants(self, case: Case, variant: str, plain: torch_entrants.TorchEntrants) -> Iterator[Entrant]:
        if variant in torch_entrants.NAMES:
            return plain.of(variant)
        if variant in onnx_entrants.NAMES:
            return onnx_entrants.entrants(case, variant)
        engine, build_s = self._engines.engine(variant, self._ladder.validations, self._ladder.seed)
        return flame_entrants.entrants(case, variant, engine, build_s)

    def _checked(self, entrant: Entrant, truths: Truths) -> Recorded:
        """Recorded, run once, and compared with the oracle. Raises `Refused` where it gave something else."""
        replay = self._clock.recorded(entrant.run) if entrant.graph else entrant.run
        if entrant.before:
            entrant.before()
        replay()
        self._clock.wait()
        found = distance(entrant.found(), truths.of(entrant), entrant.precision) if entrant.found else None
        if found and found.objection:
            raise Refused(f"{entrant.part}, {entrant.kind}: {found.objection}")
        return Recorded(entrant, replay, found)


def _tidy(device: torch.device) -> None:
    """Gives memory of what was measured back, before the next case takes its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
