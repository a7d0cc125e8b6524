"""The place of one executor: who is there now, what it does, and how it went with those before."""

from __future__ import annotations

import threading

from flame.engine.backends.base import Engine, HistoryState
from flame.engine.spec import Profile
from flame.orchestrator.attempt import Attempt
from flame.orchestrator.executor import Executor
from flame.orchestrator.job import Job


class Post:
    """One of the places for executors on the engine of `device`. The orchestrator's lock guards it.

    `executor` is None while one is built anew, and `out` says that none will be. `attempt` is what its thread does:
    the launch of `job`, which began at `began`, or a rebuild. `failures` counts rebuilds that failed in a row, `hung`
    the threads that were given up and are not back, and `lost` holds the history length of every state they took.
    """

    def __init__(self, number: int, device: int, engine: Engine, profiles: tuple[Profile, ...]) -> None:
        self.number = number
        self.device = device
        self.engine = engine
        self.profiles = profiles
        self.executor: Executor | None = Executor(engine, profiles)
        self.thread: threading.Thread | None = None
        self.attempt: Attempt | None = None
        self.job: Job | None = None
        self.began = 0.0
        self.failures = 0
        self.hung = 0
        self.lost: list[int] = []
        self.out = False

    @property
    def state(self) -> str:
        """In a word, as metrics have it."""
        return "out" if self.out else "rebuilding" if self.executor is None else "running"

    @property
    def name(self) -> str:
        """The device's, as metrics have it."""
        return self.engine.device

    def begin(self, attempt: Attempt, job: Job | None = None, began: float = 0.0) -> None:
        """Its thread does this from now on."""
        self.attempt, self.job, self.began = attempt, job, began

    def end(self) -> None:
        """Its thread is done with that."""
        self.attempt = self.job = None

    def build(self) -> tuple[Executor, list[tuple[int, HistoryState]]]:
        """A new executor that has passed a trial, and states by history length for those that are lost.

        Takes long and touches nothing of the post: called without the lock. Raises what the engine raises.
        """
        executor = Executor(self.engine, self.profiles)
        executor.trial()
        return executor, [(history, self.engine.state(history)) for history in self.lost]
