"""A real `flame serve` as a child process, on free ports."""

from __future__ import annotations

import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import msgspec

from flame.errors import FlameError

START_S = 300.0
"""How long a server may take to be ready; building an engine is part of it."""
STOP_S = 20.0


class ServerFailed(FlameError):
    """The server did not start; the end of what it said is in the message."""

    kind = "server_failed"


class _Ready(msgspec.Struct):
    host: str
    http_port: int
    grpc_port: int


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that is ready."""

    pid: int
    host: str
    http_port: int
    grpc_port: int

    @property
    def http(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"grpc://{self.host}:{self.grpc_port}"


@contextmanager
def serving(source: str, options: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """Runs `flame serve source` with further command-line options while the block runs. Raises `ServerFailed`."""
    command = [sys.executable, "-m", "flame", "serve", source, "--json", "--http-port", "0", "--grpc-port", "0"]
    with tempfile.TemporaryFile() as said:
        # A process group of its own: Ctrl-C reaches this process, which then ends the server once and in order.
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=said, process_group=0)
        try:
            yield _ready(process, said)
        finally:
            _stop(process)


def _ready(process: subprocess.Popen[bytes], said: IO[bytes]) -> ServerProcess:
    assert process.stdout is not None
    line = _first_line(process.stdout, START_S)
    if not line:
        process.kill()
        process.wait()
        said.seek(0)
        text = said.read()[-2000:].decode("utf-8", "replace")
        raise ServerFailed(f"the server did not start, exit code {process.returncode}: {text}")
    ready = msgspec.json.decode(line, type=_Ready)
    return ServerProcess(process.pid, ready.host, ready.http_port, ready.grpc_port)


def _first_line(stream: IO[bytes], seconds: float) -> bytes:
    """The first line of a pipe; empty when it ends or `seconds` pass before."""
    until = time.monotonic() + seconds
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, until - time.monotonic())):
                return b""
            piece = stream.read1(4096)  # type: ignore[attr-defined]
            if not piece:
                return b""
            line += piece
    return line


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
