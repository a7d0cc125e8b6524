"""Sends requests in open or closed loop and writes down what happened to each."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flame.bench.load.client import Client, Reply
from flame.bench.load.record import Outcome, Seconds

Tick = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Message:
    """A request ready to be sent, and how many pairs it asks for."""

    data: bytes
    candidates: int


class Generator:
    """Sends `messages` round and round through one client; a request without an answer after `timeout_s` is given up.

    The time limit counts from the intended sending, so a run ends at most `timeout_s` after its last arrival.
    `tick` is told the seconds since the start whenever a request ends.
    """

    def __init__(
        self, client: Client, messages: Sequence[Message], timeout_s: float = 10.0, tick: Tick = lambda _: None
    ) -> None:
        self._client = client
        self._messages = messages
        self._timeout_s = timeout_s
        self._tick = tick
        self._outcomes: list[Outcome] = []
        self._start = 0.0

    async def open_loop(self, due: Seconds) -> list[Outcome]:
        """Sends one request at each of the times `due` `[n]` (seconds from now), whatever becomes of the others."""
        self._begin()
        running: set[asyncio.Task[None]] = set()
        for index, at in enumerate(due):
            await self._until(float(at))
            task = asyncio.create_task(self._one(index, float(at)))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        return self._outcomes

    async def closed_loop(self, callers: int, duration_s: float, most: int) -> list[Outcome]:
        """`callers` callers that send as soon as they were answered, for `duration_s` and at most `most` requests."""
        self._begin()
        indices = itertools.count()

        async def caller() -> None:
            while self._now() < duration_s and (index := next(indices)) < most:
                await self._one(index, self._now())

        await asyncio.gather(*(caller() for _ in range(callers)))
        return self._outcomes

    def _begin(self) -> None:
        self._outcomes = []
        self._start = time.perf_counter()

    async def _until(self, due: float) -> None:
        """Lets others run at least once. A timer of the loop may end a millisecond early, and a request that is sent
        before it is due would look faster than it was."""
        await asyncio.sleep(max(0.0, due - self._now()))
        while (left := due - self._now()) > 0:
            await asyncio.sleep(left)

    def _now(self) -> float:
        return time.perf_counter() - self._start

    async def _one(self, index: int, due: float) -> None:
        message = self._messages[index % len(self._messages)]
        sent = self._now()
        try:
            async with asyncio.timeout(due + self._timeout_s - sent):
                reply = await self._client.send(message.data)
        except TimeoutError:
            reply = Reply("timeout")
        done = self._now()
        self._outcomes.append(Outcome(due, sent, done, message.candidates, reply))
        self._tick(done)
