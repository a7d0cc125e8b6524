"""The place of one executor: who is there now, what it does, and how it went with those before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from flame.engine.backends.base import Engine, HistoryState
from flame.engine.spec import Profile
from flame.errors import ExecutionError, FlameError, InvalidLaunch
from flame.orchestrator.attempt import Abandoned, Attempt
from flame.orchestrator.executor import Executor
from flame.orchestrator.job import Job

_log = logging.getLogger(__name__)


class Post:
    """One of the places for executors on the engine of `device`. The orchestrator's lock guards it.

    `executor` is None while one is built anew, and `out` says that none will be. `attempt` is what its thread does:
    the launch of `job`, which began at `began`, or a rebuild. `failures` counts rebuilds that failed in a row, `hung`
    the threads that were given up and are not back, and `lost` holds the history length of every state they took.
    `suspects` are executors that failed, with the states that their launch had; only those that work are freed.
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
        self.suspects: list[tuple[Executor, Sequence[object]]] = []
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

    def run(self, job: Job) -> FlameError | None:
        """Runs the launch that was begun; what the engine raises is logged in full and becomes its requests' error.

        In the thread of the post, without the lock. Raises `Abandoned` where the launch was given up meanwhile.
        """
        profile, kind = job.launch.profile, job.launch.kind
        executor, attempt = self.executor, self.attempt
        assert executor is not None
        assert attempt is not None
        states = [part.ticket.held for part in job.parts]
        try:
            executor.run(profile, kind, job.parts, attempt)
        except Abandoned:
            raise
        except BaseException as cause:  # a thread that ends would take its requests with it
            try:
                attempt.end()
            except Abandoned:
                self.suspects.append((executor, states))
                raise
            _log.exception("launch of %s %s failed for %d requests", profile, kind, len(job.requests()))
            error = InvalidLaunch if isinstance(cause, InvalidLaunch) else ExecutionError
            return error(f"the launch of {profile} ({kind}) failed with {type(cause).__name__}; see the server's log")
        return None

    def build(self) -> tuple[Executor, list[tuple[int, HistoryState]]]:
        """A new executor that has passed a trial, and states by history length for those that are lost.

        Takes long: called in the thread of the post, without the lock. Raises what the engine raises.
        """
        for _ in range(len(self.suspects)):
            suspect = self.suspects.pop(0)  # nobody else's while it is tried, whoever gives this thread up
            if not _works(suspect[0]):
                self.suspects.append(suspect)
        executor = Executor(self.engine, self.profiles)
        try:
            executor.trial()
        except BaseException:
            self.suspects.append((executor, ()))
            raise
        return executor, [(history, self.engine.state(history)) for history in self.lost]


def _works(executor: Executor) -> bool:
    """Whether an executor that failed may be freed: whether its device does what it is told.

    Where an error has spoiled a CUDA context for good, to free what PyTorch allocated there ends the process, and with
    it the answers to all who wait.
    """
    try:
        executor.trial()
    except BaseException:
        _log.warning("an executor that failed does not work any more, and is not freed", exc_info=True)
        return False
    return True
