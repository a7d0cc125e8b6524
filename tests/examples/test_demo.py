"""The demonstration, end to end: real data, a real server, the command line."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flame.examples.movielens.server import ServerFailed, serving

DEMO = [sys.executable, "-m", "flame", "demo"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_ranks_real_movies_and_ends(real_wheel: Path) -> None:
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ ?10 +\S", done.stdout, re.MULTILINE)) == 3
    assert len(re.findall(r" 19\d\d +[A-Z]", done.stdout)) >= 25
    for stage in ("admission", "features", "queue", "compute", "respond", "total", "http"):
        assert re.search(rf"^ +{stage}( +\d+\.\d\d){{3}}", done.stdout, re.MULTILINE), stage


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_with_keep_it_serves_until_interrupted(real_wheel: Path) -> None:
    with subprocess.Popen([*DEMO, "--keep"], stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            assert process.stdout is not None
            curl = next(line for line in process.stdout if "curl" in line)
            host, port = re.search(r"http://([\d.]+):(\d+)/v1/rank", curl).groups()
            body = re.search(r"-d '(.*)'", curl)[1]
            with closing(http.client.HTTPConnection(host, int(port), timeout=30)) as connection:
                connection.request("POST", "/v1/rank", body)
                response = connection.getresponse()
                assert response.status == 200
                assert b'"like"' in response.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            with (
                pytest.raises(ConnectionRefusedError),
                closing(http.client.HTTPConnection(host, int(port))) as connection,
            ):
                connection.connect()
        finally:
            process.kill()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailed, match=r"(?s)exit code 1.*neither a model folder"),
        serving(tmp_path / "x", tmp_path),
    ):
        pass
