"""Settings: which source wins, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.config import Config, load
from flame.errors import ConfigError


def test_defaults_need_no_source() -> None:
    assert load(environ={}) == Config()


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "flame.toml"
    file.write_text("[server]\nhttp_port = 1\ngrpc_port = 2\nhost = 'file'\n")
    config = load(
        file,
        environ={"FLAME_SERVER_HTTP_PORT": "3", "FLAME_SERVER_GRPC_PORT": "4"},
        overrides={"server.http_port": "5"},
    )
    assert (config.server.http_port, config.server.grpc_port, config.server.host) == (5, 4, "file")


def test_lists_are_read_from_text() -> None:
    config = load(environ={"FLAME_ORCHESTRATOR_CANDIDATES": "128, 256"})
    assert config.orchestrator.candidates == (128, 256)


def test_variables_of_no_section_are_left_to_others() -> None:
    assert load(environ={"FLAME_HOME": "/x", "FLAME": "1", "OTHER_SERVER_HOST": "y"}) == Config()


@pytest.mark.parametrize(
    ("environ", "overrides", "words"),
    [
        ({"FLAME_SERVER_PROT": "1"}, {}, ["environment", "server.prot", "http_port"]),
        ({}, {"server.http_port": "eighty"}, ["command line", "http_port", "int"]),
        ({}, {"server.http_port": 70000}, ["command line", "http_port", "65535"]),
        ({}, {"sever.host": "x"}, ["sever.host", "server"]),
        ({}, {"features.cache": "lazy"}, ["cache", "lazy"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_source(
    environ: dict[str, str], overrides: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ=environ, overrides=overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["[server]\nhttp_prot = 1\n", "[serber]\nhost = 'x'\n", "not toml ="])
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "flame.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"flame\.toml"):
        load(file, environ={})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "nothing.toml", environ={})
