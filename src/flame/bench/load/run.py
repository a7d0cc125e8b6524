"""`flame load`: one run against a server, from the URL to the rows of the report."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from flame.bench import workloads
from flame.bench.distributions import Choice, LogNormal
from flame.bench.load.arrivals import poisson
from flame.bench.load.check import Check, compare
from flame.bench.load.client import Client, LoadError, ModelFacts
from flame.bench.load.generator import Generator, Message
from flame.bench.load.record import Outcome, Window, summarise
from flame.bench.load.search import Search, Step
from flame.bench.load.target import Target
from flame.bench.progress import Show
from flame.bench.workloads import Limits, Recipe, Workload

UNKNOWN_ITEMS = 10_000
"""Item ids to draw from where neither the command line nor the server says how many there are."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to send, how, and for how long. Exactly one of `rate`, `concurrency` and `search_p99_ms` is given.

    `history` "full" sends histories as long as the model takes, "store" sends user ids only. `candidates` None
    asks for as many as the model takes. `distinct` requests are made before the run and then sent in turn, again and
    again. Times are in the units of their names.
    """

    target: Target
    model: str | None = None
    rate: float | None = None
    concurrency: int | None = None
    search_p99_ms: float | None = None
    duration_s: float = 10.0
    warm_up_s: float = 1.0
    step_s: float = 5.0
    most_requests: int = 1_000_000
    deadline_ms: float | None = None
    timeout_s: float = 10.0
    connections: int = 256
    candidates: Choice | LogNormal | None = None
    history: Choice | LogNormal | str = "full"
    users: int = 1000
    items: int | None = None
    zipf: float = 1.05
    distinct: int = 2000
    seed: int = 0
    check: Check | None = None


@dataclass(slots=True)
class LoadResult:
    """Rows of the report, and the facts that stand beside them."""

    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        """Whether any request was answered at all."""
        return any(row["requests"] > row["failed"] for row in self.rows)


def run(plan: LoadPlan, show: Show) -> LoadResult:
    """Drives the load in an event loop of its own. Raises `LoadError` and `ConfigError`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(plan, show))


async def _run(plan: LoadPlan, show: Show) -> LoadResult:
    client = plan.target.connect(plan.connections)
    try:
        facts = await client.facts(plan.model)
        workload = workloads.generate(_recipe(plan, facts), _limits(plan, facts))
        checked = await compare(plan.check, client, facts, workload) if plan.check else None
        result = await _Load(plan, client, facts, workload, show).measure()
    finally:
        await client.close()
    result.facts |= {"model": facts.name, "version": facts.version, "backend": facts.backend, "seed": plan.seed}
    if checked is not None:
        result.facts["check"] = checked
    return result


def _limits(plan: LoadPlan, facts: ModelFacts) -> Limits:
    items = plan.items or (facts.vocabulary - 1 if facts.vocabulary else UNKNOWN_ITEMS)
    return Limits(facts.max_history, facts.max_candidates, facts.actions, facts.scenarios, items)


def _recipe(plan: LoadPlan, facts: ModelFacts) -> Recipe:
    history = Choice((facts.max_history,)) if plan.history == "full" else plan.history
    return Recipe(
        requests=plan.distinct,
        candidates=plan.candidates or Choice((facts.max_candidates,)),
        history=None if isinstance(history, str) else history,
        users=plan.users,
        zipf=plan.zipf,
        seed=plan.seed,
    )


class _Load:
    """Runs of one plan against one server."""

    def __init__(self, plan: LoadPlan, client: Client, facts: ModelFacts, workload: Workload, show: Show) -> None:
        self._plan, self._client, self._facts, self._show = plan, client, facts, show
        self._messages = [
            Message(client.message(request, facts, plan.deadline_ms), len(request.candidates)) for request in workload
        ]

    async def measure(self) -> LoadResult:
        plan = self._plan
        if plan.search_p99_ms is not None:
            return await self._search(plan.search_p99_ms)
        before = await self._client.durations(self._facts.name)
        if plan.rate is not None:
            outcomes, window = await self._open(plan.rate, plan.duration_s)
            row = self._row(outcomes, window, mode="open", rate=plan.rate)
        else:
            assert plan.concurrency is not None
            outcomes, window = await self._closed(plan.concurrency, plan.duration_s)
            row = self._row(outcomes, window, mode="closed", concurrency=plan.concurrency)
        after = await self._client.durations(self._facts.name)
        row["server_mean_us"] = {
            stage: (after[stage][1] - before[stage][1]) / 1e3 / (after[stage][0] - before[stage][0])
            for stage in after
            if after[stage][0] > before[stage][0]
        }
        return LoadResult([row])

    async def _open(self, rate: float, seconds: float) -> tuple[list[Outcome], Window]:
        window = Window(self._plan.warm_up_s, self._plan.warm_up_s + seconds)
        due = poisson(rate, window.end, self._plan.seed)[: self._plan.most_requests]
        generator = self._generator(f"open loop, {rate:.4g}/s", window.end)
        return await generator.open_loop(due), _cut(window, due[-1:].tolist(), len(due) == self._plan.most_requests)

    async def _closed(self, callers: int, seconds: float) -> tuple[list[Outcome], Window]:
        window = Window(self._plan.warm_up_s, self._plan.warm_up_s + seconds)
        generator = self._generator(f"closed loop, {callers} callers", window.end)
        outcomes = await generator.closed_loop(callers, window.end, self._plan.most_requests)
        ends = [one.done for one in outcomes[-1:]]
        return outcomes, _cut(window, ends, len(outcomes) == self._plan.most_requests)

    async def _search(self, p99_ms: float) -> LoadResult:
        """A closed loop says where to begin; every step of the search is a row, the last one is the answer."""
        plan = self._plan
        outcomes, window = await self._closed(plan.concurrency or 4, plan.step_s)
        capacity = self._row(outcomes, window, mode="closed", concurrency=plan.concurrency or 4)
        if not capacity["achieved_rate"]:
            raise LoadError(f"the server answered nothing in a closed loop: {capacity['errors'] or 'no requests'}")
        search = Search(self._open, p99_ms, plan.step_s, plan.duration_s)
        best = await search.run(capacity["achieved_rate"])
        rows = [{"phase": "capacity"} | capacity, *(self._step(step, p99_ms) for step in search.steps)]
        if best is not None:
            rows.append(self._step(best, p99_ms) | {"phase": "highest rate held"})
        return LoadResult(rows, {"search_p99_ms": p99_ms, "step_s": plan.step_s, "confirm_s": plan.duration_s})

    def _step(self, step: Step, p99_ms: float) -> dict[str, Any]:
        row = self._row(step.outcomes, step.window, mode="open", rate=step.rate)
        return {"phase": step.phase, "held": step.held, "bound_p99_ms": p99_ms} | row

    def _row(self, outcomes: Sequence[Outcome], window: Window, **how: Any) -> dict[str, Any]:
        return {"protocol": self._plan.target.protocol, **how} | summarise(outcomes, window, self._plan.deadline_ms)

    def _generator(self, text: str, seconds: float) -> Generator:
        return Generator(
            self._client, self._messages, self._plan.timeout_s, lambda now: self._show(text, min(now, seconds), seconds)
        )


def _cut(window: Window, ends: list[float], reached_the_most: bool) -> Window:
    """`window`, ended early where the bound on requests ended the run."""
    if not reached_the_most or not ends or ends[0] <= window.start:
        return window
    return Window(window.start, min(window.end, ends[0]))
