"""The health of executors: those whose launch failed or does not end are taken out and rebuilt, or stay out.

A launch that fails costs its executor: its own thread builds one anew, while the others go on. A launch past its limit
is given up by the watchdog: its thread is left to itself, and a new one builds an executor in its place. What the old
one may still read and write (launch buffers, states) is freed when it comes back, if it does; the features of its
requests never are (`FlameError.features_lost`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from flame.errors import EngineFailed, ExecutionError, FlameError, InvalidLaunch
from flame.metrics import Metrics
from flame.orchestrator.attempt import Attempt
from flame.orchestrator.job import Job
from flame.orchestrator.post import Post
from flame.orchestrator.schedule import Schedule
from flame.orchestrator.watchdog import Watchdog

_log = logging.getLogger(__name__)

_MOST_FAILURES = 5
"""Rebuilds of a post that may fail one after the other; then it stays out."""
_MOST_HUNG = 3
"""Threads of a post that may be gone at the same time, as each holds launch buffers; then it stays out."""
_PAUSE_S = 0.2
"""Between the first rebuild that fails and the next; doubles each time."""
_LATE_S = 0.25
"""Within this time a late request is told so, where no executor asks for work and would find it."""
_REBUILD_S = 60.0
"""Longest time of a rebuild, where launches have a limit: on a GPU, graphs of every profile are captured."""


class Supervisor:
    """Runs the threads of executors. Shares the orchestrator's lock, which guards posts and schedule.

    `serve` is the life of an executor's thread. `answer` answers what has been settled, called without the lock. Under
    it are called `wake`, which wakes executors for what others leave to them, and `book`, which writes down a launch
    that was given up. `failed` ends when no executor is left, and never otherwise.
    """

    def __init__(
        self,
        posts: Sequence[Post],
        schedule: Schedule,
        lock: threading.Lock,
        limit_s: float,
        metrics: Metrics,
        *,
        serve: Callable[[Post], None],
        answer: Callable[[], None],
        wake: Callable[[], None],
        book: Callable[[Post, Job, float, FlameError], None],
    ) -> None:
        self.failed: Future[None] = Future()
        self.failed.set_running_or_notify_cancel()
        self.left = True
        """Whether any executor runs, or may yet."""
        self._posts = posts
        self._schedule = schedule
        self._lock = lock
        self._limit_s = limit_s or math.inf
        self._metrics = metrics
        self._serve = serve
        self._answer = answer
        self._wake = wake
        self._book = book
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._watchdog = Watchdog(min(self._limit_s, _LATE_S), self._look)

    def start(self) -> None:
        """Starts a thread for every post, and the watchdog."""
        self._count()
        for post in self._posts:
            self._start(post)
        self._watchdog.start()

    @property
    def running(self) -> bool:
        """Whether a thread of an executor is alive, also one that was given up."""
        return any(thread.is_alive() for thread in self._threads)

    def stop(self, timeout: float) -> None:
        """Waits at most `timeout` seconds for launches that run, and gives up those that do not end."""
        self._stopping.set()
        self._watchdog.stop()
        limit = time.monotonic() + timeout
        for post in self._posts:
            if post.thread is not None:
                post.thread.join(max(0.0, limit - time.monotonic()))
        with self._lock:
            for post in self._posts:
                post.hung += post.attempt is not None and post.attempt.abandon()

    def launch(self, post: Post, job: Job, now: float) -> None:
        """A launch begins. Under the lock."""
        post.begin(Attempt(self._limit_s), job, now)

    def launched(self, post: Post, error: FlameError | None) -> None:
        """A launch has ended; one that failed costs the executor, unless the engine only refused it. Under the lock."""
        post.end()
        if error is None:
            return
        refused = isinstance(error, InvalidLaunch)
        self._metrics.launches_failed.labels(post.name, "refused" if refused else "error").inc()
        if not refused:
            assert post.executor is not None
            post.suspects.append((post.executor, ()))
            self._take_out(post)

    def returned(self, post: Post) -> None:
        """A thread that was given up is back, and ends."""
        _log.warning("executor %d: what was given up has come back after all", post.number)
        with self._lock:
            post.hung -= 1

    def rebuild(self, post: Post) -> bool:
        """Builds an executor anew, in the thread of the post; again after pauses where it fails. Whether there is one.

        Raises `Abandoned` where it took too long.
        """
        while post.failures < _MOST_FAILURES and post.hung < _MOST_HUNG:
            if self._stopping.wait(_PAUSE_S * 2 ** (post.failures - 1) if post.failures else 0.0):
                return False
            if self._rebuilt(post):
                return True
        self._leave_out(post)
        return False

    def _rebuilt(self, post: Post) -> bool:
        attempt = Attempt(max(self._limit_s, _REBUILD_S))
        attempt.begin()
        with self._lock:
            post.begin(attempt)
        try:
            executor, states = post.build()
        except BaseException:
            attempt.end()
            _log.exception("executor %d could not be rebuilt", post.number)
            self._metrics.rebuilds.labels(post.name, "failed").inc()
            with self._lock:
                post.end()
                post.failures += 1
            return False
        attempt.end()
        with self._lock:
            post.end()
            post.executor, post.failures = executor, 0
            for history, state in states:
                self._schedule.devices[post.device].reuse.pool.replace(history, state)
            post.lost.clear()
            self._schedule.staff(1, post.device)
            self._count()
        self._metrics.rebuilds.labels(post.name, "ok").inc()
        _log.info("executor %d was rebuilt", post.number)
        return True

    def _take_out(self, post: Post) -> None:
        post.executor = None
        self._schedule.staff(-1, post.device)
        self._schedule.hand_over(post.device)
        self._count()
        self._wake()

    def _leave_out(self, post: Post) -> None:
        """The end of a post. Others take over from the last of its device; without any, whatever waits has failed."""
        with self._lock:
            post.out = True
            left = sum(not other.out for other in self._posts)
            if not left:
                self.left = False
                self._schedule.abandon(no_executor())
            elif all(other.out for other in self._posts if other.device == post.device):
                self._schedule.leave_out(post.device, ExecutionError(f"no executor of {post.name} is left"))
                self._wake()
            self._count()
        _log.error("executor %d stays out: it hung or could not be rebuilt; %d are left", post.number, left)
        if not left:
            _log.critical("no executor is left: the server is not ready and refuses requests; restart the process")
            self.failed.set_result(None)
        self._answer()

    def _start(self, post: Post) -> None:
        thread = threading.Thread(target=self._serve, args=(post,), name=f"flame-executor-{post.number}", daemon=True)
        thread.start()
        post.thread = thread
        self._threads = [*(other for other in self._threads if other.is_alive()), thread]

    def _look(self, now: float) -> float:
        """What the watchdog does: ends late requests, and launches that do not end. The first limit of the others."""
        with self._lock:
            self._schedule.drop_late(now)
        self._answer()
        return self._give_up_hung(now)

    def _give_up_hung(self, now: float) -> float:
        """Gives up what is over its limit; the first limit of what is not."""
        with self._lock:
            running = [(post, post.attempt) for post in self._posts if post.attempt and not post.attempt.ended]
            hung = [post for post, attempt in running if attempt.until <= now and attempt.abandon()]
            for post in hung:
                self._give_up(post, now)
        if hung:
            self._answer()
        for post in hung:
            try:
                self._start(post)
            except RuntimeError:
                _log.exception("executor %d: no thread to rebuild it", post.number)
                self._leave_out(post)
        return min([attempt.until for _, attempt in running if attempt.until > now], default=math.inf)

    def _give_up(self, post: Post, now: float) -> None:
        """Parts with the thread of a post. Under the lock."""
        job = post.job
        post.hung += 1
        if job is None:
            post.end()
            _log.error("executor %d: its rebuild does not end and is given up", post.number)
            post.failures += 1
            return
        _log.error("executor %d: its launch of %s does not end and is given up", post.number, job.launch.profile)
        self._metrics.launches_failed.labels(post.name, "hang").inc()
        error = ExecutionError(
            f"the launch of {job.launch.profile} ({job.launch.kind}) took longer than {1e3 * self._limit_s:g} ms "
            f"(orchestrator.launch_limit_ms) and was given up"
        )
        self._book(post, job, now, error)
        post.lost += self._schedule.give_up(job, began=post.began, now=now, error=error)
        post.end()
        self._take_out(post)

    def _count(self) -> None:
        counts = Counter((post.name, post.state) for post in self._posts)
        for name in {post.name for post in self._posts}:
            for state in ("running", "rebuilding", "out"):
                self._metrics.executors.labels(name, state).set(counts[name, state])


def no_executor() -> EngineFailed:
    """The answer to requests when no executor is left."""
    return EngineFailed(
        "every executor failed and could not be rebuilt; use another server, this one must be restarted"
    )
