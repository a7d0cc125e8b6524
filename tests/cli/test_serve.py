"""`flame serve` and what ends it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chrome_traces import read

Flame = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def started(environ: dict[str, str], *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "flame", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "ctrl-c"])
def test_serve_tells_its_ports_answers_and_ends_cleanly(
    environ: dict[str, str], number: signal.Signals, tmp_path: Path
) -> None:
    words = ["serve", "preset:tiny-climber", "--backend", "eager", "--http-port", "0", "--grpc-port", "0", "--json"]
    words += ["--trace", str(tmp_path / "trace.json")]
    with started(environ, *words) as process:
        assert process.stdout is not None
        place = json.loads(process.stdout.readline())
        body = json.dumps({"user": 1, "candidates": [1, 2, 3]}).encode()
        url = f"http://{place['host']}:{place['http_port']}/v1/rank"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
            assert len(json.load(answer)["scores"]["like"]) == 3
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == "", "standard output has the one line only"
    assert "(climber, backend eager on cpu in fp32)" in error
    assert "Stopped: every request was answered" in error
    assert len(read((tmp_path / "trace.json").read_bytes()).requests) == 1


def test_a_port_that_is_taken_is_said(flame_here: Flame) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = ["serve", "preset:tiny-climber", "--backend", "eager", "--log-level", "error", "--grpc-port", "0"]
        done = flame_here(*words, "--http-port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in done.stderr


def test_settings_come_from_all_sources_and_the_command_line_wins(
    flame_here: Flame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each source sets a backend that is not there, so the error tells who won."""
    file = tmp_path / "flame.toml"
    file.write_text('[engine]\nbackend = "from-file"\n')
    words = ["rank", "preset:tiny-climber", "--user", "1", "--candidates", "1", "--config", str(file)]
    assert "'from-file'" in flame_here(*words).stderr
    monkeypatch.setenv("FLAME_ENGINE_BACKEND", "from-environment")
    assert "'from-environment'" in flame_here(*words).stderr
    words += ["--set", "engine.backend=from-set"]
    assert "'from-set'" in flame_here(*words).stderr
    assert "'from-option'" in flame_here(*words, "--backend", "from-option").stderr


def test_ctrl_c_ends_a_load_with_130(environ: dict[str, str]) -> None:
    """A listener that takes connections and never answers holds the generator."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with started(environ, "load", url, "--rate", "1") as process:
            connection, _ = silent.accept()
            with connection:
                connection.recv(100)
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
