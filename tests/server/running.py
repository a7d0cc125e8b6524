"""A server as a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("tiny_server.py")
PATH = [str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]
PATIENCE_S = 60


class Server:
    """A server process; `log` is what it says to a person. With `faulty` its engine can be made to fail."""

    def __init__(self, *, faulty: bool = False, **settings: Any) -> None:
        overrides = {"server.http_port": 0, "server.grpc_port": 0, "features.fetch_timeout_ms": 60_000}
        command = [sys.executable, "-W", "error", str(SCRIPT), json.dumps(overrides | settings), *["faulty"] * faulty]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, PATH))},
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        if not first:
            self.process.wait()
            self.kill()
            raise AssertionError(f"the server did not start:\n{self.log}")
        ports = json.loads(first)
        self.http = f"127.0.0.1:{ports['http']}"
        self.grpc = f"127.0.0.1:{ports['grpc']}"
        self.frozen: int = ports["frozen"]

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def signal(self, number: int) -> None:
        """Sends the process a signal."""
        self.process.send_signal(number)

    def ended(self) -> dict[str, Any]:
        """Waits for the end; the last line of the process."""
        assert self.process.stdout is not None
        last = self.process.stdout.read()
        self.process.stdout.close()
        code = self.process.wait(PATIENCE_S)
        self._reader.join()
        assert code == 0, self.log
        ending: dict[str, Any] = json.loads(last)
        return ending

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """One HTTP request on a connection of its own: status, body, headers."""
        connection = http.client.HTTPConnection(self.http, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read(), response.headers

    def metric(self, name: str, **labels: str) -> float:
        """A sample of `/metrics`, 0 where it is absent."""
        text = self.request("GET", "/metrics")[1].decode()
        inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        start = f"{name}{{{inner}}} " if inner else f"{name} "
        return next((float(line.removeprefix(start)) for line in text.splitlines() if line.startswith(start)), 0.0)

    def eventually(self, true: Callable[[], bool]) -> None:
        """Waits until the server gets to a state."""
        until = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < until, self.log
            time.sleep(0.01)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):
            self._lines.extend(self.process.stderr)
