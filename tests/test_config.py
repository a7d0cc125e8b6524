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


def test_defaults_of_a_command_lose_against_everybody_else() -> None:
    defaults = {"orchestrator.executors": 4, "orchestrator.keep_states": 3, "orchestrator.users": (1, 8)}
    config = load(environ={"FLAME_ORCHESTRATOR_EXECUTORS": "1"}, defaults=defaults)
    assert config.orchestrator.executors == 1, "even when they say what is the default elsewhere"
    assert (config.orchestrator.keep_states, config.orchestrator.users) == (3, (1, 8))


def test_lists_are_read_from_text() -> None:
    config = load(environ={"FLAME_ORCHESTRATOR_CANDIDATES": "128, 256"})
    assert config.orchestrator.candidates == (128, 256)


def test_variables_of_no_section_are_left_to_others() -> None:
    assert load(environ={"FLAME_HOME": "/x", "FLAME": "1", "OTHER_SERVER_HOST": "y"}) == Config()


@pytest.mark.parametrize(
    ("environ", "overrides", "words"),
    [
        ({"FLAME_SERVER_PROT": "1"}, {}, ["environment", "server.prot", "http_port"]),
        ({}, {"server.http_port": "eighty"}, ["command line", "http_port", "whole number"]),
        ({}, {"server.http_port": 70000}, ["command line", "http_port", "65535"]),
        ({}, {"sever.host": "x"}, ["sever.host", "server"]),
        ({}, {"features.cache": "lazy"}, ["features.cache is 'lazy'", "it is one of off, sync, async"]),
        ({"FLAME_SERVER_HTTP_PORT": "abc"}, {}, ["environment: server.http_port is 'abc': not a whole number"]),
        ({"FLAME_ORCHESTRATOR_USERS": "1,x"}, {}, ["orchestrator.users is '1,x'", "`int`"]),
        ({"FLAME_FEATURES_CACHE_TTL_S": "inf"}, {}, ["features.cache_ttl_s is 'inf'", "<= 315360000"]),
        ({}, {"orchestrator.default_deadline_ms": "nan"}, ["default_deadline_ms is 'nan'"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_source(
    environ: dict[str, str], overrides: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ=environ, overrides=overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[server]\nhttp_prot = 1\n", "no setting 'server.http_prot'; server has host, http_port"),
        (b"[serber]\nhost = 'x'\n", "no setting 'serber'; sections are features"),
        (b"[serber]\n", "no setting 'serber'"),
        (b"server = 5\n", "no setting 'server'; server has host"),
        (b"[server]\nhttp_port = 70000\n", "server.http_port is 70000: Expected `int` <= 65535"),
        (b"not toml =", "is not TOML"),
        (b"# \xe9\n", "is not TOML: 'utf-8' codec"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "flame.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"flame\.toml") as caught:
        load(file, environ={})
    assert message in str(caught.value)


def test_a_file_may_begin_with_the_mark_some_editors_write(tmp_path: Path) -> None:
    file = tmp_path / "flame.toml"
    file.write_bytes(b"\xef\xbb\xbf[server]\r\nhttp_port = 7\r\n")
    assert load(file, environ={}).server.http_port == 7


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, environ={})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "nothing.toml", environ={})
