"""A `flame serve` process on free ports, and a client that speaks its JSON."""

from __future__ import annotations

import http.client
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from flame.errors import FlameError

_STOP_S = 30
_ANSWER_S = 60


class ServerFailed(FlameError):
    """The server of the example did not start, or did not answer as it should."""

    kind = "server_failed"


@contextmanager
def serving(model: Path, store: Path, options: Sequence[str] = ()) -> Iterator[RankClient]:
    """Serves `model` in a process of its own until the block ends; more `options` go to `flame serve`.

    Raises `ServerFailed` with the end of what the server wrote when it does not start.
    """
    command = [sys.executable, "-m", "flame", "serve", str(model), "--store-path", str(store), "--json"]
    command += ["--http-port", "0", "--grpc-port", "0", *options]
    with tempfile.TemporaryFile("w+") as errors:
        # A process group of its own: Ctrl-C reaches this process, which then ends the server once and in order.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, process_group=0)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                errors.seek(0)
                raise ServerFailed(f"the server ended with exit code {process.wait()}: {errors.read()[-2000:].strip()}")
            place = msgspec.json.decode(line)
            with closing(RankClient(place["host"], place["http_port"])) as client:
                yield client
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends the server in order, and by force if it does not."""
    process.terminate()
    try:
        process.communicate(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


class RankClient:
    """Asks `POST /v1/rank` over one kept connection; used by one thread."""

    def __init__(self, host: str, port: int) -> None:
        self.url = f"http://{host}:{port}"
        self._connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)

    def rank(self, user: int, candidates: Sequence[int]) -> dict[str, Any]:
        """The answer as decoded JSON. Raises `ServerFailed` with what the server said to a request it refused."""
        body = msgspec.json.encode({"user": user, "candidates": candidates})
        self._connection.request("POST", "/v1/rank", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            raise ServerFailed(f"POST /v1/rank for user {user}: {response.status} {content[:500].decode()}")
        answer: dict[str, Any] = msgspec.json.decode(content)
        return answer

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()
