"""Traces of what was done lately: as the answer to a call, and as the file that a server leaves behind."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from flame.errors import ConfigError, QueueFull
from flame.files import replacing, try_replacing
from flame.orchestrator.chrome_trace import encode
from flame.orchestrator.timeline import Timeline


class Traces:
    """Makes traces for clients, one at a time and on a thread of its own. Belongs to the thread of one event loop."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._busy = False

    async def trace(self, seconds: float | None) -> bytearray:
        """The trace of the last `seconds`, or of all there is. Raises `QueueFull` while one is made for another."""
        if self._busy:
            raise QueueFull("a trace is being made for another client; try again in a second")
        self._busy = True
        making = asyncio.ensure_future(asyncio.to_thread(_made, self._timeline, seconds))
        making.add_done_callback(self._done)
        return await asyncio.shield(making)  # a client who goes away does not end the thread

    def _done(self, making: asyncio.Future[bytearray]) -> None:
        self._busy = False


def _made(timeline: Timeline, seconds: float | None) -> bytearray:
    whole = bytearray()
    for piece in encode(timeline.snapshot(seconds)):
        whole += piece
        time.sleep(0)  # who waits for the interpreter gets it: requests go first
    return whole


class TraceFile:
    """The file that a server's last trace is written to."""

    def __init__(self, name: str) -> None:
        """Raises `ConfigError` where it could not be written; leaves it as it is."""
        self._path = Path(name).resolve()
        if self._path.exists() and not self._path.is_file():
            raise ConfigError(f"server.trace: {name} is no file; name one that may be replaced")
        try:
            try_replacing(self._path)
        except OSError as error:
            raise ConfigError(f"server.trace: cannot write {name}: {error.strerror}") from error

    def write(self, timeline: Timeline) -> str:
        """Writes all there is, whole or not at all. A sentence says how it went, also where the disk is full."""
        try:
            with replacing(self._path) as new, new.open("wb") as file:
                file.writelines(encode(timeline.snapshot()))
        except OSError as error:
            return f"The trace could not be written to {self._path}: {error.strerror}"
        return f"Wrote a trace of the last requests to {self._path}; open it at https://ui.perfetto.dev"
